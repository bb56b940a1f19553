# SPDX-License-Identifier: Apache-2.0
"""Machine code of each kernel, taken out of the installed module by NVIDIA's disassembler."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType

import pytest

from aapt_fast.ops._load import extension_or_none


@dataclass(frozen=True)
class Expected:
    """Compiled form of a kernel."""

    instantiations: int
    at_least: dict[str, int]  # opcode -> how often in each instantiation
    hopper: bool = False  # compiled for sm_90a alone; other kernels for every other architecture of the build
    beside: str | None = None  # a further function of the kernel, which the counts are not for


HOPPER_ATTENTION = Expected(
    4,
    # 4 or 8 products for Q K^T and 8 for P V, and again the first product of keys, before the loop, and the last one of
    # values, after it; boxes of Q, K, V and the result; registers change hands; the turns.
    {"HGMMA": 24, "UTMALDG": 6, "UTMASTG": 1, "STSM": 4, "USETMAXREG": 2, "SYNCS": 10, "BAR": 8},
    hopper=True,
)

# One row per kernel. The counts are those of the smallest instantiation: how often the inner loops, unrolled, need the
# instruction. HMMA: matrix product; LDSM: ldmatrix; LDGSTS: cp.async; HGMMA: wgmma; UTMALDG: load by TMA.
EXPECTED = {
    # Per step 64 products for Q K^T and 64 for P V; pieces of Q, of K twice (first page, next page) and of V.
    "paged_attention_portable": Expected(4, {"HMMA": 128, "LDSM": 40, "LDGSTS": 20}),
    # Per slab of 64 columns 2 x 4 products in four steps of 16; pieces of the weight of this slab and of the next.
    "channel_concat_portable": Expected(4, {"HMMA": 32, "LDSM": 16, "LDGSTS": 8}),
    # Box-Muller in double.
    "philox_normal_portable": Expected(1, {"DFMA": 50}),
    # With one vector per thread: its loads, what goes to q, K and V, the sums of a head and of the block.
    "kv_write_portable": Expected(16, {"LDG": 7, "STG": 3, "SHFL": 24}),
    # With one vector per thread and a warp per row: x, y and three modulations, two results, the sum of the row.
    "gate_residual_norm_portable": Expected(18, {"LDG": 10, "STG": 2, "SHFL": 5}),
    # With patches of 2: two tokens and t; four rows of four pixels, as vectors and one by one.
    "clean_frame_portable": Expected(4, {"LDG": 23, "STG": 19}),
    # Blocks of 16 columns: per step 4 rows of pixels by 2 tiles of columns, for 16 channels twice. Blocks for single
    # pixels: 4 pieces of a patch and 4 of a weight, before the loop twice and in it.
    "ring_conv3d_portable": Expected(10, {"HMMA": 16, "LDSM": 10, "LDGSTS": 24}),
    # With one vector per lane: two pixels, a weight in one of two types, the sum of a pixel; GroupNorm beside it.
    "norm_silu_portable": Expected(15, {"LDG": 5, "STG": 2, "SHFL": 2, "MUFU": 34}, beside="norm_silu_parts"),
    "paged_attention_sm90": HOPPER_ATTENTION,
    # Boxes of K and V twice, with the first or the second page; the barrier of the cluster; a function that combines
    # the parts, which may begin early.
    "paged_attention_sm90_split": replace(
        HOPPER_ATTENTION,
        instantiations=8,
        at_least={**HOPPER_ATTENTION.at_least, "UCGABAR_ARV": 1, "UCGABAR_WAIT": 1, "PREEXIT": 1},
        beside="combine",
    ),
}

# Local memory is slow memory that a kernel of ours never needs: LDL reads it, STL writes it.
FORBIDDEN = ("LDL", "STL")


@dataclass(frozen=True)
class Function:
    """One compiled function for one architecture."""

    symbol: str
    architecture: str  # "sm_90a"
    instructions: tuple[tuple[int, str], ...]  # address and text, in their order
    registers: int
    stack: int  # bytes of local memory per thread

    @cached_property
    def opcodes(self) -> tuple[str, ...]:
        """First words of the instructions, without predicates and modifiers."""
        return tuple(opcode(text) for _, text in self.instructions)

    def __str__(self) -> str:
        counts = dict(Counter(self.opcodes))
        return f"{self.symbol} for {self.architecture}, {self.registers} registers, {self.stack} bytes, {counts}"


@dataclass(frozen=True)
class MachineCode:
    """Contents of a file's fat binaries."""

    functions: tuple[Function, ...]
    ptx: tuple[tuple[str, str], ...]  # (architecture, symbol) of entries

    def of(self, kernel: str) -> list[Function]:
        """Functions of a kernel, for every architecture."""
        return [function for function in self.functions if belongs(function.symbol, kernel)]


def opcode(text: str) -> str:
    """First word of an instruction, without predicate and modifiers."""
    return re.sub(r"^@!?U?P\w+\s+", "", text).split(None, 1)[0].split(".", 1)[0]


def belongs(symbol: str, name: str) -> bool:
    """True if a part of the mangled symbol is this name, as a whole."""
    return re.search(rf"(?<!\d){len(name)}{name}", symbol) is not None


def dump(file: Path, what: str) -> str:
    """Output of cuobjdump, which needs nvdisasm on PATH for machine code."""
    folders = [str(Path(folder) / "nvidia" / "cu13" / "bin") for folder in sys.path]
    path = os.pathsep.join([*folders, os.environ["PATH"]])
    for name in ("cuobjdump", "nvdisasm"):
        if shutil.which(name, path=path) is None:
            pytest.skip(f"{name} is missing: pip install nvidia-cuda-{name}")
    command = [str(shutil.which("cuobjdump", path=path)), what, str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PATH": path}).stdout


def instructions(listing: str) -> tuple[tuple[int, str], ...]:
    """Address and text of each instruction of a listing of cuobjdump."""
    found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(@?!?[A-Z][^;]*?)\s*;", listing)
    return tuple((int(address, 16), text) for address, text in found)


def machine_code(file: Path) -> MachineCode:
    """Read the machine code and PTX of a file, compressed or not."""
    functions, usage = [], {}
    for section in dump(file, "-res-usage").split("\nFatbin elf code:\n")[1:]:
        architecture = re.search(r"arch = (\w+)", section)[1]
        for symbol, registers, stack in re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+)", section):
            usage[architecture, symbol] = (int(registers), int(stack))
    for section in dump(file, "-sass").split("\tcode for ")[1:]:
        architecture = section.split("\n", 1)[0].strip()
        for text in section.split("\t\tFunction : ")[1:]:
            symbol = text.split("\n", 1)[0].strip()
            functions.append(Function(symbol, architecture, instructions(text), *usage[architecture, symbol]))
    ptx = []
    for section in dump(file, "-ptx").split("\nFatbin ptx code:\n")[1:]:
        architecture = re.search(r"arch = (\w+)", section)[1]
        ptx += [(architecture, symbol) for symbol in re.findall(r"\.entry\s+(\w+)", section)]
    return MachineCode(tuple(functions), tuple(ptx))


# ---- the installed module ----

EVERY_KERNEL = pytest.mark.parametrize("kernel", EXPECTED)


@pytest.fixture(scope="module")
def built() -> ModuleType:
    """The installed module; skips where it has no machine code."""
    module = extension_or_none()
    if module is None or not module.build_info()["cuda"]:
        pytest.skip("the installed module was built without CUDA")
    return module


@pytest.fixture(scope="module")
def installed(built) -> MachineCode:
    return machine_code(Path(str(built.__file__)))


def architectures(built: ModuleType, kernel: str) -> dict[str, set[str]]:
    """Those that a kernel is compiled for, such as "sm_80": as machine code ("real") and as PTX ("virtual")."""
    found: dict[str, set[str]] = {"real": set(), "virtual": set()}
    for number, letter, kind in re.findall(r"(\d+)(a?)-(\w+)", built.build_info()["cuda_archs"]):
        if (letter == "a") == EXPECTED[kernel].hopper:
            found[kind].add(f"sm_{number}{letter}")
    return found


def test_every_kernel_has_a_row(built):
    compiled = {name for name in EXPECTED if architectures(built, name)["real"] | architectures(built, name)["virtual"]}
    assert {name for name in dir(built) if re.search(r"_(portable|sm90(_\w+)?)$", name)} == compiled


@EVERY_KERNEL
def test_kernel_is_compiled_for_every_architecture(kernel, built, installed):
    expected, count = architectures(built, kernel), EXPECTED[kernel].instantiations
    compiled = Counter(function.architecture for function in installed.of(kernel))
    assert compiled == dict.fromkeys(expected["real"], count)
    entries = Counter(architecture for architecture, symbol in installed.ptx if belongs(symbol, kernel))
    assert entries == dict.fromkeys(expected["virtual"], count)


def test_every_function_belongs_to_one_kernel(installed):
    for function in installed.functions:
        assert len([kernel for kernel in EXPECTED if belongs(function.symbol, kernel)]) == 1, function.symbol


@EVERY_KERNEL
def test_kernel_has_the_expected_instructions(kernel, installed):
    for function in installed.of(kernel):
        counts = Counter(function.opcodes)
        assert counts["EXIT"] > 0, function  # this is a disassembly
        if is_beside(function, kernel):
            continue
        missing = {
            name: (least, counts[name]) for name, least in EXPECTED[kernel].at_least.items() if counts[name] < least
        }
        assert not missing, f"opcode: (expected at least, got): {missing} in {function}"


@EVERY_KERNEL
def test_kernel_needs_no_local_memory(kernel, installed):
    for function in installed.of(kernel):
        assert function.stack == 0 and 0 < function.registers <= 255, function
        assert not set(FORBIDDEN) & set(function.opcodes), function


@pytest.mark.parametrize("kernel", ["paged_attention_sm90", "paged_attention_sm90_split"])
def test_softmax_stands_between_the_products_and_the_wait_for_the_second_one(kernel, installed):
    """ptxas, free to move the wait for the values, leaves a few of the 64 exponentials of a tile for after it."""
    for function in installed.of(kernel):
        if is_beside(function, kernel):
            continue
        letters = {"HGMMA": "p", "WARPGROUP": "w", "MUFU": "e"}
        order = "".join(letters.get(name, "") for name in function.opcodes)
        assert re.search("wp{4,8}wp{8}we{60,}w", order), f"{function.symbol}: {order}"


@pytest.mark.parametrize("kernel", ["paged_attention_sm90", "paged_attention_sm90_split"])
def test_nothing_touches_the_registers_of_a_product_before_its_wait(kernel, installed):
    for function in installed.of(kernel):
        assert product_hazards(function.instructions) == [], function.symbol


@EVERY_KERNEL
def test_no_loop_waits_until_the_whole_gpu_sees_its_writes(kernel, installed):
    for function in installed.of(kernel):
        assert in_loops(function.instructions, "MEMBAR.ALL.GPU") == [], function.symbol


def is_beside(function: Function, kernel: str) -> bool:
    """True for a further function of the kernel."""
    beside = EXPECTED[kernel].beside
    return beside is not None and belongs(function.symbol, beside)


# ---- order of instructions ----


def in_loops(code: tuple[tuple[int, str], ...], name: str) -> list[str]:
    """Instructions that begin with `name` and from which a path leads back to them."""
    place = {at: i for i, (at, _) in enumerate(code)}
    following: list[list[int]] = []
    for i, (_, text) in enumerate(code):
        target = re.search(r"\bBRA\b.*(0x[0-9a-f]+)$", text)
        ends = opcode(text) in ("BRA", "EXIT") and not re.match(r"@|BRA U?P", text)
        following.append(
            ([place[int(target[1], 16)]] if target else []) + ([] if ends or i + 1 == len(code) else [i + 1])
        )

    def comes_back(start: int) -> bool:
        seen, ahead = set(), [start]
        while ahead:
            new = set(following[ahead.pop()]) - seen
            seen |= new
            ahead += new
        return start in seen

    matches = [i for i, (_, text) in enumerate(code) if re.match(rf"(@!?U?P\w+\s+)?{name}", text)]
    return [f"{code[i][0]:#x} {code[i][1]}" for i in matches if comes_back(i)]


def registers_of(text: str) -> set[int]:
    """Registers that an instruction names, and those beside them that a wide access means."""
    width = 4 if ".128" in text else 2 if ".64" in text else 1
    data = re.sub(r"\[[^]]*\]", "", text)
    named = {int(number) for number in re.findall(r"\bR(\d+)\b", text)}
    return named | {int(number) + i for number in re.findall(r"\bR(\d+)\b", data) for i in range(width)}


def product_hazards(code: tuple[tuple[int, str], ...]) -> list[str]:
    """Products without WARPGROUP.ARRIVE before them or without a wait, and accesses to their registers before the wait.

    Goes through the instructions as they stand and follows no branch. A group of products ends with `gsb0`;
    DEPBAR.LE gsb0, n waits until n groups are on their way.
    """
    hazards: list[str] = []
    groups: list[set[int]] = []  # registers of the groups on their way
    group: set[int] = set()
    arrived = False
    for at, text in code:
        name, where = opcode(text), f"{at:#x} {text}"
        if "WARPGROUP.ARRIVE" in text:
            arrived = True
        elif name == "HGMMA":
            columns = int(re.search(r"64x(\d+)x16", text)[1])
            out, a = re.search(r"\bR(\d+), (?:R(\d+), )?gdesc", text).groups()
            group |= set(range(int(out), int(out) + columns // 2))
            group |= set(range(int(a), int(a) + 4)) if a else set()
            if not arrived:
                hazards.append(f"no WARPGROUP.ARRIVE before {where}")
            if "gsb0" in text:
                groups.append(group)
                group = set()
        elif match := re.search(r"WARPGROUP\.DEPBAR\.LE gsb0, (0x[0-9a-f]+)", text):
            left = int(match[1], 16)
            groups = groups[len(groups) - left :] if left else []
            arrived = False
            if group:
                hazards.append(f"a group without gsb0 before {where}")
        elif name == "EXIT" and (group or groups):
            hazards.append(f"no wait before {where}")
        elif registers_of(text) & set.union(group, *groups):
            hazards.append(f"registers of a product in {where}")
    return hazards


def listing(*lines: str) -> tuple[tuple[int, str], ...]:
    return instructions("".join(f"        /*{16 * i:04x}*/    {line} ;  /* 0x0 */\n" for i, line in enumerate(lines)))


FIRST = "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], RZ, !UPT, gsb0"
SECOND = "HGMMA.64x64x16.F32.BF16 R88, R120, gdesc[UR8].tnspB, R88, gsb0"
ARRIVE, WAIT_FOR_ALL, WAIT_FOR_FIRST = (
    "WARPGROUP.ARRIVE",
    "WARPGROUP.DEPBAR.LE gsb0, 0x0",
    "WARPGROUP.DEPBAR.LE gsb0, 0x1",
)


@pytest.mark.parametrize(
    ("lines", "hazards"),
    [
        ([ARRIVE, FIRST, "FMUL R20, R3, R4", WAIT_FOR_ALL, "FMUL R24, R24, R4", "EXIT"], 0),
        ([ARRIVE, FIRST, ARRIVE, SECOND, WAIT_FOR_FIRST, "FMUL R24, R55, R4", WAIT_FOR_ALL, "FMUL R88, R120, R4"], 0),
        ([ARRIVE, FIRST, "@!P0 FMUL R5, R55, R4", WAIT_FOR_ALL], 1),
        ([ARRIVE, FIRST, "LDS.128 R52, [R2]", WAIT_FOR_ALL], 1),
        ([ARRIVE, FIRST, "LDS.128 R8, [R56+0x10]", WAIT_FOR_ALL], 0),
        ([ARRIVE, FIRST, ARRIVE, SECOND, WAIT_FOR_FIRST, "F2FP.BF16.F32.PACK_AB R123, R4, R5", WAIT_FOR_ALL], 1),
        ([FIRST, WAIT_FOR_ALL], 1),
        ([ARRIVE, FIRST.replace(", gsb0", ""), WAIT_FOR_ALL], 1),
        ([ARRIVE, FIRST, "@P0 EXIT", WAIT_FOR_ALL], 1),
    ],
    ids=[
        "right",
        "right, in two groups",
        "accumulator read",
        "accumulator written, four at once",
        "the register after the last accumulator",
        "operand written",
        "no arrive",
        "no group",
        "no wait",
    ],
)
def test_hazards_of_products_are_found(lines, hazards):
    assert len(product_hazards(listing(*lines))) == hazards


def test_instructions_in_loops_are_found():
    fence = "@P1 MEMBAR.ALL.GPU"
    code = listing(fence, "FADD R1, R2, R3", fence, "MEMBAR.ALL.CTA", "@!P0 BRA 0x10", fence, "@P0 BRA 0x90", "EXIT")
    code += ((0x80, "BRA 0x80"), (0x90, fence), (0xA0, "BRA P2, 0x70"), (0xB0, "EXIT"))  # a block moved to the end
    assert in_loops(code, "MEMBAR.ALL.GPU") == [f"0x20 {fence}"]
    assert [opcode(text) for _, text in code[:3]] == ["MEMBAR", "FADD", "MEMBAR"]


# ---- the reader ----

SOURCE = """
template <int kSteps> __global__ void scale_portable(float* x) {
  for (int i = 0; i < kSteps; ++i) x[threadIdx.x] = x[threadIdx.x] * 3.0 + 0.123456789;
}
template __global__ void scale_portable<2>(float*);
__global__ void a_b(float* x, int n) {
  float v[64];
  for (int i = 0; i < n; ++i) v[(n * i) % 64] = x[i];
  x[0] = v[n];
}
"""


@pytest.fixture(scope="module", params=[[], ["--no-compress"]], ids=["compressed", "not compressed"])
def compiled(nvcc, tmp_path_factory, request) -> MachineCode:
    """Two functions for two architectures and PTX, compressed or not."""
    file = tmp_path_factory.mktemp("compiled") / "two.cu"
    file.write_text(SOURCE)
    codes = [
        f"-gencode=arch=compute_{arch},code={code}" for arch, code in (("80", "[sm_80,compute_80]"), ("90a", "sm_90a"))
    ]
    flags = ["-O3", *request.param, *codes]
    subprocess.run([nvcc, *flags, "-c", str(file), "-o", str(file.with_suffix(".o"))], check=True, capture_output=True)
    return machine_code(file.with_suffix(".o"))


def test_functions_and_ptx_are_found(compiled):
    for name in ("scale_portable", "a_b"):
        assert [function.architecture for function in compiled.of(name)] == ["sm_80", "sm_90a"]
        assert [architecture for architecture, symbol in compiled.ptx if belongs(symbol, name)] == ["sm_80"]
    for function in compiled.of("scale_portable"):
        assert {"LDG", "DFMA", "STG", "EXIT"} <= set(function.opcodes) and function.stack == 0


def test_local_memory_is_seen(compiled):
    for function in compiled.of("a_b"):
        assert function.stack >= 256 and set(FORBIDDEN) <= set(function.opcodes)


def test_names_are_matched_whole():
    split = "_ZN4aapt26paged_attention_sm90_splitIN4cute5tupleEEEvv"
    assert belongs("_ZN4aapt20paged_attention_sm90ILi1EEEvv", "paged_attention_sm90")
    assert belongs(split, "paged_attention_sm90_split") and not belongs(split, "paged_attention_sm90")
    assert not belongs("_ZN4aapt120paged_attention_sm90Evv", "paged_attention_sm90")
