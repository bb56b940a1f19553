# SPDX-License-Identifier: Apache-2.0
"""Which machine code a GPU has verified.

`verified.json` lists kernels whose tests have passed on a GPU, each with the hash of the machine code that ran
(`ops/machine_code.py`). A kernel is verified here if the module has exactly that code and this machine's GPU would run
it. A change of the instructions, whether it comes from the source, the compiler or its flags, changes the hash, and the
kernel is off until a GPU has verified it again. The C++ code that checks arguments and launches is not in the hash: it
is the same on every GPU, and the emulated tests cover it. Entries are written by `bench/record_verified.py`.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from aapt_fast.errors import require
from aapt_fast.ops.machine_code import MachineCodeError, kernel_hash, machine_code

FILE = Path(__file__).with_name("verified.json")
SCHEMA = 1


@dataclass(frozen=True)
class Entry:
    """Machine code of one kernel that has passed the kernel's tests on a GPU."""

    kernel: str  # "paged_attention/portable"
    architecture: str  # "sm_90"
    hash: str  # SHA-256, 64 hexadecimal digits
    gpu: str  # its name
    date: str  # 2026-11-20
    commit: str
    driver: str
    torch: str


@dataclass(frozen=True)
class Verification:
    """Whether a kernel's machine code is verified, and why or why not in words."""

    verified: bool
    why: str
    architecture: str | None = None  # of the machine code that runs
    hash: str | None = None


def is_verified(kernel: str, module: ModuleType, device: torch.device) -> bool:
    """True if the tests of this kernel have passed with this machine code on a GPU of this kind."""
    return verification(kernel, module, device).verified


@functools.cache  # asked for in every call of an op
def verification(kernel: str, module: ModuleType, device: torch.device | None) -> Verification:
    """Whether a GPU has verified what this kernel would run on `device`, and why or why not in words.

    Args:
        kernel: for example "paged_attention/portable".
        module: the compiled module.
        device: a GPU; None or a CPU means that there is no GPU.
    """
    info = module.build_info()
    if info["emulated"]:
        return Verification(False, "the kernels are emulated on the CPU")
    if not info["cuda"]:
        return Verification(False, "the module was built without CUDA")
    try:
        code = machine_code(module)
    except (MachineCodeError, OSError) as error:
        return Verification(False, f"the machine code cannot be read: {error}")
    if device is None or device.type != "cuda":
        return Verification(False, "no GPU here")
    capability = torch.cuda.get_device_capability(device)
    architecture = running_architecture(code.architectures(kernel), capability)
    if architecture is None:
        if any(runs_ptx(ptx.architecture, capability) for ptx in code.ptx):
            return Verification(False, "compiled by the driver from PTX")
        return Verification(False, f"no machine code for a GPU of capability {'.'.join(map(str, capability))}")
    digest = kernel_hash(kernel, module, architecture)
    for entry in entries():
        if (entry.kernel, entry.architecture, entry.hash) == (kernel, architecture, digest):
            return Verification(True, f"verified on {entry.gpu}, {entry.date}", architecture, digest)
    return Verification(False, "no GPU has verified this machine code", architecture, digest)


def running_architecture(architectures: Iterable[str], capability: tuple[int, int]) -> str | None:
    """The machine code that a GPU of this compute capability runs, or None.

    A GPU runs code of its own major version and of no higher minor version, the nearest one; code for "sm_90a" runs
    on capability 9.0 only, where it is preferred.
    """
    fitting = []
    for architecture in architectures:
        version, exact = _version(architecture)
        if version == capability or (not exact and version[0] == capability[0] and version[1] < capability[1]):
            fitting.append((version, exact, architecture))
    return max(fitting)[2] if fitting else None


def runs_ptx(architecture: str, capability: tuple[int, int]) -> bool:
    """True if the driver can compile PTX for "compute_80" for a GPU of this compute capability."""
    version, exact = _version(architecture)
    return version == capability if exact else version <= capability


def _version(architecture: str) -> tuple[tuple[int, int], bool]:
    """((9, 0), True) of "sm_90a": compute capability, and whether the code runs there only."""
    match = re.fullmatch(r"(?:sm|compute)_(\d+)(\d)([af]?)", architecture)
    if match is None:
        raise ValueError(f"architecture: expected a name like sm_90a, got {architecture}")
    return (int(match[1]), int(match[2])), bool(match[3])


# ---- the file ----


@functools.cache
def entries() -> tuple[Entry, ...]:
    """The entries of the installed `verified.json`."""
    return read_entries(FILE)


def read_entries(file: Path) -> tuple[Entry, ...]:
    """The entries of a file like `verified.json`.

    Raises:
        ValueError: it has another schema, or an entry is incomplete.
    """
    document = json.loads(file.read_text())
    schema = document.get("schema") if isinstance(document, dict) else None
    require(schema == SCHEMA, file.name, f"schema {SCHEMA}", schema)
    return tuple(entry_of(facts, file.name) for facts in document["entries"])


def entry_of(facts: dict[str, Any], argument: str) -> Entry:
    """An entry with these facts; `argument` names their source in errors.

    Raises:
        ValueError: a fact is missing, empty or of the wrong form, or there are others.
    """
    names = [field.name for field in fields(Entry)]
    require(isinstance(facts, dict), argument, f"entries with {', '.join(names)}", facts)
    require(sorted(facts) == sorted(names), argument, f"entries with {', '.join(names)}", ", ".join(facts))
    for name, value in facts.items():
        require(isinstance(value, str) and value.strip() != "", f"{argument}: {name}", "text", repr(value))
    require(_matches(r"[0-9a-f]{64}", facts["hash"]), f"{argument}: hash", "64 hexadecimal digits", facts["hash"])
    known = _matches(r"sm_\d{2,}[af]?", facts["architecture"])
    require(known, f"{argument}: architecture", "a name like sm_90a", facts["architecture"])
    require(_matches(r"\d{4}-\d\d-\d\d", facts["date"]), f"{argument}: date", "YYYY-MM-DD", facts["date"])
    return Entry(**facts)


def _matches(pattern: str, text: str) -> bool:
    return re.fullmatch(pattern, text) is not None
