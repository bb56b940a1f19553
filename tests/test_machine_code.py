# SPDX-License-Identifier: Apache-2.0
"""What the compiler made of each kernel, read from the installed module; and the reader of machine code itself."""

from __future__ import annotations

import functools
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import pytest
from aapt_fast.ops.machine_code import (
    Cubin,
    Function,
    MachineCode,
    MachineCodeError,
    belongs,
    kernel_hash,
    machine_code,
    read_machine_code,
)

from aapt_fast.ops._load import extension_or_none
from aapt_fast.ops.kernels import KERNELS


@dataclass(frozen=True)
class Expected:
    """What each kernel shall be compiled to."""

    instantiations: int
    at_least: dict[str, int]  # opcode -> how often in each instantiation
    architectures: tuple[str, ...] = ("sm_80", "sm_90")
    ptx: str | None = "compute_80"
    beside: str | None = None  # a further function of the kernel, which the counts are not for


HOPPER_ATTENTION = Expected(
    4,
    {"HGMMA": 12, "UTMALDG": 6, "UTMASTG": 1, "STSM": 4, "USETMAXREG": 2, "SYNCS": 10},
    architectures=("sm_90a",),
    ptx=None,
)

# One row per kernel. The counts are those of the smallest instantiation: how often the inner loops, unrolled, need the
# instruction. HMMA: matrix product; LDSM: ldmatrix; LDGSTS: cp.async; HGMMA: wgmma; UTMALDG: load by TMA.
EXPECTED = {
    # Per step 64 products for Q K^T and 64 for P V; pieces of Q, of K twice (first page, next page) and of V.
    "paged_attention/portable": Expected(4, {"HMMA": 128, "LDSM": 40, "LDGSTS": 20}),
    # Per slab of 64 columns 2 x 4 products in four steps of 16; pieces of the weight of this slab and of the next.
    "channel_concat/portable": Expected(4, {"HMMA": 32, "LDSM": 16, "LDGSTS": 8}),
    # The same twice, for the features whose tile makes the noise and for the others; Box-Muller in double.
    "channel_concat_noise/portable": Expected(4, {"HMMA": 64, "LDSM": 32, "LDGSTS": 16, "DFMA": 100}),
    "philox_normal/portable": Expected(1, {"DFMA": 50}),
    # With one vector per thread: its loads, what goes to q, K and V, the sums of a head and of the block.
    "kv_write/portable": Expected(16, {"LDG": 7, "STG": 3, "SHFL": 24}),
    # With one vector per thread and a warp per row: x, y and three modulations, two results, the sum of the row.
    "gate_residual_norm/portable": Expected(18, {"LDG": 10, "STG": 2, "SHFL": 5}),
    # Per slab of 64 columns four steps of products; boxes of both factors and of the residual; registers change hands.
    "linear_residual/sm90": Expected(
        2,
        {"HGMMA": 4, "UTMALDG": 3, "UTMASTG": 1, "STSM": 1, "USETMAXREG": 2, "SYNCS": 10},
        architectures=("sm_90a",),
        ptx=None,
    ),
    # With patches of 2: two tokens and t; four rows of four pixels, as vectors and one by one.
    "clean_frame/portable": Expected(4, {"LDG": 23, "STG": 19}),
    # 4 or 8 products for Q K^T and 8 for P V; boxes of Q, K, V and the result; registers change hands.
    "paged_attention/sm90": HOPPER_ATTENTION,
    # The same and the first product of keys, before the loop, and the last one of values, after it; the turns.
    "paged_attention/sm90_overlap": replace(
        HOPPER_ATTENTION, at_least={**HOPPER_ATTENTION.at_least, "HGMMA": 24, "BAR": 8}
    ),
    # Boxes of K and V twice, with the first or the second page; the barrier of the cluster, before and after.
    "paged_attention/sm90_cluster": replace(
        HOPPER_ATTENTION,
        at_least={**HOPPER_ATTENTION.at_least, "HGMMA": 24, "BAR": 7, "UCGABAR_ARV": 2, "UCGABAR_WAIT": 2},
    ),
    # The same, and parts of the result from registers; a function that combines them.
    "paged_attention/sm90_split": replace(
        HOPPER_ATTENTION,
        instantiations=8,
        at_least={**HOPPER_ATTENTION.at_least, "HGMMA": 24, "STG": 16, "UCGABAR_ARV": 2},
        beside="combine",
    ),
}

# Local memory is slow memory that a kernel of ours never needs: LDL reads it, STL writes it.
FORBIDDEN = ("LDL", "STL")


def installed() -> tuple[ModuleType, MachineCode]:
    """The installed module and its machine code; skips where it has none."""
    module = extension_or_none()
    if module is None or not module.build_info()["cuda"]:
        pytest.skip("the installed module was built without CUDA")
    return module, machine_code(module)


def nvdisasm() -> str:
    folders = [str(Path(folder) / "nvidia" / "cu13" / "bin") for folder in sys.path]
    found = next(filter(None, (shutil.which("nvdisasm", path=folder) for folder in folders)), shutil.which("nvdisasm"))
    return found or pytest.skip("nvdisasm is missing: pip install nvidia-cuda-nvdisasm")


@functools.cache
def listing(cubin: Cubin) -> dict[str, list[str]]:
    """The opcodes of each function of a cubin, in their order: {symbol: ["HMMA", ...]}."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin.image)
        file.flush()
        text = subprocess.run([nvdisasm(), "-c", file.name], capture_output=True, text=True, check=True).stdout
    found: dict[str, list[str]] = {}
    for section in text.split("\t.section\t.text.")[1:]:
        symbol = section.split(",", 1)[0]
        found[symbol] = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", section)
    return found


def opcodes(cubin: Cubin) -> dict[str, Counter[str]]:
    """How often each function of a cubin has each opcode: {symbol: {"HMMA": 128, ...}}."""
    return {symbol: Counter(names) for symbol, names in listing(cubin).items()}


# ---- the installed module ----

OVERLAPPING = [kernel for kernel in KERNELS if kernel.startswith("paged_attention/sm90_")]
EVERY_KERNEL = pytest.mark.parametrize("kernel", KERNELS)


def test_every_kernel_has_a_row():
    assert set(EXPECTED) == set(KERNELS)


@EVERY_KERNEL
def test_kernel_is_compiled_for_every_architecture(kernel):
    module, code = installed()
    expected = EXPECTED[kernel]
    assert set(code.architectures(kernel)) == set(expected.architectures)
    for architecture in expected.architectures:
        assert len(code.functions(kernel, architecture)) == expected.instantiations
        digest = kernel_hash(kernel, module, architecture)
        assert digest is not None and re.fullmatch("[0-9a-f]{64}", digest)
    entries = [(ptx.architecture, re.findall(r"\.entry\s+(\w+)", ptx.text or "")) for ptx in code.ptx]
    compiled = [(name, symbol) for name, symbols in entries for symbol in symbols if belongs(symbol, kernel)]
    assert Counter(name for name, _ in compiled) == ({expected.ptx: expected.instantiations} if expected.ptx else {})


def test_every_function_belongs_to_one_kernel():
    _, code = installed()
    for symbol in {function.symbol for cubin in code.cubins for function in cubin.functions}:
        assert len([kernel for kernel in KERNELS if belongs(symbol, kernel)]) == 1, symbol


@EVERY_KERNEL
def test_kernel_has_the_expected_instructions(kernel):
    _, code = installed()
    seen = 0
    for cubin, function in compiled_functions(code, kernel):
        counts = opcodes(cubin)[function.symbol]
        what = f"{function.symbol} for {cubin.architecture}, {function.registers} registers, {dict(counts)}"
        assert counts["EXIT"] > 0, what  # this is a disassembly
        assert not any(counts[name] for name in FORBIDDEN), what
        seen += 1
        if is_beside(function, kernel):
            continue
        missing = {
            name: (least, counts[name]) for name, least in EXPECTED[kernel].at_least.items() if counts[name] < least
        }
        assert not missing, f"opcode: (expected at least, got): {missing} in {what}"
    assert seen == EXPECTED[kernel].instantiations * len(EXPECTED[kernel].architectures)


@pytest.mark.parametrize("kernel", OVERLAPPING)
def test_softmax_stands_between_the_products_and_the_wait_for_the_second_one(kernel):
    """The 64 exponentials of a tile, after the wait for the scores; ptxas is free to move that of the values."""
    _, code = installed()
    functions = [pair for pair in compiled_functions(code, kernel) if not is_beside(pair[1], kernel)]
    for cubin, function in functions:
        waits = "".join(
            {"HGMMA": "p", "WARPGROUP": "w", "MUFU": "e"}.get(name, "") for name in listing(cubin)[function.symbol]
        )
        assert re.search("wp{4,8}wp{8}we{64,}w", waits), f"{function.symbol}: {waits}"


@EVERY_KERNEL
def test_kernel_needs_no_local_memory(kernel):
    _, code = installed()
    for cubin, function in compiled_functions(code, kernel):
        what = f"{function.symbol} for {cubin.architecture}, {function.registers} registers"
        assert function.stack_frame == 0, f"{what}: {function.stack_frame} bytes of local memory per thread"
        assert 0 < function.registers <= 255 and len(function.code) % 16 == 0 and any(function.code), what


def compiled_functions(code: MachineCode, kernel: str) -> list[tuple[Cubin, Function]]:
    every = [(cubin, function) for cubin in code.cubins for function in cubin.functions]
    return [(cubin, function) for cubin, function in every if belongs(function.symbol, kernel)]


def is_beside(function: Function, kernel: str) -> bool:
    beside = EXPECTED[kernel].beside
    return beside is not None and f"{len(beside)}{beside}" in function.symbol


# ---- hashes ----

SOURCE = """
// a comment
template <int kSteps> __global__ void scale_portable(float* x) {
  for (int i = 0; i < kSteps; ++i) x[threadIdx.x] = x[threadIdx.x] * 3.0 + 0.123456789;
}
template __global__ void scale_portable<2>(float*);
__global__ void scale_portable_noise(float* x) { x[threadIdx.x] += 1; }
"""


def compiled(nvcc: str, file: Path, source: str, *options: str) -> ModuleType:
    """A module (by its file only) with this CUDA source for sm_80 and sm_90a."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(source)
    codes = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in ("80", "90a")]
    flags = ["-O3", "-Xfatbin=-compress-mode=none", *codes, *options]
    subprocess.run([nvcc, *flags, "-c", str(file), "-o", str(file.with_suffix(".o"))], check=True, capture_output=True)
    module = ModuleType(file.stem)
    module.__file__ = str(file.with_suffix(".o"))
    return module


@pytest.fixture(scope="module")
def original(nvcc, tmp_path_factory) -> ModuleType:
    return compiled(nvcc, tmp_path_factory.mktemp("original") / "scale.cu", SOURCE)


def hashes(module: ModuleType) -> dict[str, str | None]:
    return {name: kernel_hash("scale/portable", module, name) for name in ("sm_80", "sm_90a")}


def test_hash_survives_another_folder_and_comment(nvcc, tmp_path, original):
    edited = SOURCE.replace("// a comment", "// another comment,\n// one line longer\n")
    other = compiled(nvcc, tmp_path / "a" / "longer" / "path" / "renamed.cu", edited)
    assert hashes(other) == hashes(original)
    assert None not in hashes(other).values()


def test_hash_survives_a_change_of_another_kernel(nvcc, tmp_path, original):
    assert hashes(compiled(nvcc, tmp_path / "scale.cu", SOURCE.replace("+= 1", "+= 2"))) == hashes(original)


@pytest.mark.parametrize(
    ("old", "new"),
    [("* 3.0", "* 5.0"), ("0.123456789", "0.123456788"), ("[threadIdx.x] =", "[threadIdx.y] ="), ("<2>", "<3>")],
    ids=["factor", "literal", "instruction", "instantiation"],
)
def test_hash_sees_every_change_of_the_kernel(nvcc, tmp_path, original, old, new):
    assert SOURCE.count(old) == 1
    changed = hashes(compiled(nvcc, tmp_path / "scale.cu", SOURCE.replace(old, new)))
    assert all(changed[name] not in (None, digest) for name, digest in hashes(original).items())


def test_hash_sees_a_literal_that_lies_outside_the_instructions(nvcc, tmp_path, original):
    """On sm_80 a double of many digits is read from a constant bank; the instructions stay the same."""
    other = compiled(nvcc, tmp_path / "scale.cu", SOURCE.replace("0.123456789", "0.123456788"))
    (before,), (after,) = (machine_code(module).functions("scale/portable", "sm_80") for module in (original, other))
    assert before.code == after.code and before.constants != after.constants


def test_unknown_kernels_and_architectures_have_no_hash(original):
    assert kernel_hash("scale/portable", original, "sm_90") is None
    assert kernel_hash("scal/portable", original, "sm_80") is None


def test_local_memory_is_seen(nvcc, tmp_path):
    source = "__global__ void a_b(float* x, int n) { float v[64]; for (int i = 0; i < n; ++i) v[(n * i) % 64] = x[i];"
    module = compiled(nvcc, tmp_path / "a.cu", source + " x[0] = v[n]; }")
    for architecture in ("sm_80", "sm_90a"):
        (function,) = machine_code(module).functions("a/b", architecture)
        assert function.stack_frame >= 256
    counts = [opcodes(cubin)[function.symbol] for cubin, function in compiled_functions(machine_code(module), "a/b")]
    assert len(counts) == 2 and all(count["LDL"] and count["STL"] for count in counts)


# ---- the reader ----


def test_names_are_matched_whole():
    noise = "_ZN4aapt29channel_concat_noise_portableIN4cute5tupleEEEvv"
    assert belongs("_ZN4aapt23channel_concat_portableILi1EEEvv", "channel_concat/portable")
    assert belongs(noise, "channel_concat_noise/portable") and not belongs(noise, "channel_concat/portable")
    assert not belongs("_ZN4aapt123channel_concat_portableEvv", "channel_concat/portable")


def test_compressed_machine_code_is_an_error_in_words(nvcc, tmp_path):
    module = compiled(nvcc, tmp_path / "scale.cu", SOURCE, "-Xfatbin=-compress-mode=size")
    with pytest.raises(MachineCodeError, match="machine code for sm_80: expected it uncompressed, got it compressed"):
        machine_code(module)


def test_other_files_are_an_error_in_words(tmp_path):
    with pytest.raises(MachineCodeError, match="module: expected a 64-bit ELF file, got bytes that start with 4d 5a"):
        read_machine_code(b"MZ\x90\0")
    with pytest.raises(MachineCodeError, match="module: expected one with a file, got nothing without"):
        machine_code(ModuleType("nothing"))


def test_a_library_without_cuda_has_no_machine_code():
    import _ctypes

    if not getattr(_ctypes, "__file__", None):
        pytest.skip("this Python has no extension module in a file")
    assert read_machine_code(Path(_ctypes.__file__).read_bytes()) == MachineCode((), ())


def elf_with_fatbin(fatbin: bytes) -> bytes:
    """The smallest ELF file with this section .nv_fatbin."""
    names = b"\0.nv_fatbin\0.shstrtab\0"
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 1, 62, 1, 0, 0, 64, 0, 64, 0, 0, 64, 3, 2)
    contents = 64 + 3 * 64
    fatbin_header = struct.pack("<IIQQQQIIQQ", 1, 1, 0, 0, contents, len(fatbin), 0, 0, 8, 0)
    names_header = struct.pack("<IIQQQQIIQQ", 12, 3, 0, 0, contents + len(fatbin), len(names), 0, 0, 1, 0)
    return header + bytes(64) + fatbin_header + names_header + fatbin + names


def container(*entries: bytes, magic: int = 0xBA55ED50, version: int = 1) -> bytes:
    return struct.pack("<IHHQ", magic, version, 16, len(b"".join(entries))) + b"".join(entries)


def entry(kind: int, payload: bytes, size: int | None = None) -> bytes:
    size = len(payload) if size is None else size
    return struct.pack("<HHIQIIHHIQQQQ", kind, 0x101, 64, size, 0, 0, 0, 0, 80, 0, 0x11, 0, 0) + payload


BROKEN = {
    "unknown container": (container(magic=0xBADC0DE), "expected a container 0xba55ed50 version 1, got 0xbadc0de"),
    "later version": (container(version=2), "got 0xba55ed50 version 2"),
    "unknown entry": (container(entry(9, bytes(8))), "expected entries with machine code or PTX, got kind 9"),
    "truncated entry": (container(entry(2, bytes(8), size=99)), ".nv_fatbin entry: expected 99 bytes at 64, got 8"),
    "truncated container": (container(entry(1, bytes(8)))[:-4], ".nv_fatbin container: expected 72 bytes"),
    "no cubin": (container(entry(2, b"something else..")), "machine code for sm_80: expected a 64-bit ELF file"),
    "truncated cubin": (
        container(entry(2, b"\x7fELF\x02\x01\x01\0")),
        "machine code for sm_80: expected 8 bytes at 40",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_containers_are_errors_in_words(name):
    fatbin, message = BROKEN[name]
    with pytest.raises(MachineCodeError, match=re.escape(message)):
        read_machine_code(elf_with_fatbin(fatbin))


def test_containers_follow_each_other_with_padding():
    ptx = container(entry(1, b".version 8.0\0\0\0\0"))
    found = read_machine_code(elf_with_fatbin(ptx + bytes(8) + ptx + bytes(16))).ptx
    assert [(part.architecture, part.text) for part in found] == [("compute_80", ".version 8.0")] * 2


def test_damage_anywhere_is_an_error_in_words_or_harmless(original):
    """Every field of a real file overwritten, one after the other: a result or an error in words, nothing else."""
    library = Path(str(original.__file__)).read_bytes()
    start = library.index(struct.pack("<I", 0xBA55ED50))
    for position in range(0, len(library) - 4, 4):
        if position < 64 or position >= start:
            damaged = library[:position] + b"\xff\xff\xff\x7f" + library[position + 4 :]
            try:
                read_machine_code(damaged)
            except MachineCodeError as error:
                assert "expected" in str(error)
