# SPDX-License-Identifier: Apache-2.0
"""The record of `aapt-fast verify`: the kernels that are right and fast on a GPU of this machine.

One JSON file per kind of GPU lies in the folder `aapt_fast/verified` of the user's cache, $XDG_CACHE_HOME or ~/.cache.
It counts for the driver and the compiled module that it was made with. A file that is damaged or of another driver or
module counts as none, and `Found.problem` says so. Files appear whole or not at all.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import math
import os
import re
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from aapt_fast.atomic import replacing
from aapt_fast.errors import require

SCHEMA = 1
COMMAND = "aapt-fast verify"
DRIVER_FILE = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Identity:
    """The GPU, driver and compiled module that a record is about."""

    gpu: str
    """Name, as torch gives it."""
    capability: str
    """Compute capability, such as "9.0"."""
    driver: str
    build: str
    """SHA-256 of the file of the compiled module."""


@dataclass(frozen=True)
class Verified:
    """The findings about one kernel."""

    fault: str | None = None
    """The reason why it did not pass, or None."""
    times_as_fast: Mapping[str, float] = field(default_factory=dict)
    """By shape and dtype: the time of torch's best over the kernel's. Above 1 the kernel is faster."""

    def __post_init__(self) -> None:
        require(self.fault is None or isinstance(self.fault, str), "fault", "words or null", self.fault)
        for case, ratio in self.times_as_fast.items():
            fits = isinstance(ratio, float | int) and math.isfinite(ratio) and ratio > 0
            require(fits, f"times_as_fast of {case}", "a positive number", ratio)

    @property
    def speed(self) -> float | None:
        """The geometric mean of `times_as_fast`, or None if nothing was timed."""
        return statistics.geometric_mean(self.times_as_fast.values()) if self.times_as_fast else None

    def obstacle(self) -> str | None:
        """The reason why the kernel stays off, or None."""
        if self.fault is not None:
            return f"it failed on this GPU: {self.fault}"
        if self.speed is None:
            return "it is right on this GPU, but could be timed at none of the shapes"
        if self.speed < 1:
            return f"it is right on this GPU, but takes {1 / self.speed:.2f} times as long as torch's best"
        return None


@dataclass(frozen=True)
class Record:
    """The findings about the kernels of one compiled module on one kind of GPU."""

    identity: Identity
    kernels: Mapping[str, Verified]
    torch: str
    """The version of torch whose operators the kernels were timed against."""
    date: str
    """The end of the last run, UTC."""

    def obstacle(self, kernel: str) -> str | None:
        """The reason why a kernel, such as "kv_write/portable", stays off, or None."""
        if kernel not in self.kernels:
            return f"`{COMMAND}` has not tried it on this GPU"
        return self.kernels[kernel].obstacle()

    def speed(self, kernel: str) -> float:
        """The kernel's `Verified.speed`; 0 where that is unknown."""
        return (self.kernels[kernel].speed if kernel in self.kernels else None) or 0.0


@dataclass(frozen=True)
class Found:
    """The record that counts for a GPU, or the reason why there is none."""

    path: Path
    gpu: str
    record: Record | None = None
    problem: str | None = None

    def obstacle(self, kernel: str) -> str | None:
        """The reason why a kernel stays off, or None."""
        if self.record is None:
            return f"{self.problem}; `{COMMAND}` makes one"
        return self.record.obstacle(kernel)

    def in_words(self) -> str:
        """One sentence about the record, for a person."""
        if self.record is None:
            return f"{self.problem}: torch's own code runs. `{COMMAND}` finds out which kernels are right and fast here"
        on = sum(self.record.obstacle(kernel) is None for kernel in self.record.kernels)
        return (
            f"{self.path}, made {self.record.date} with torch {self.record.torch}: {on} of "
            f"{len(self.record.kernels)} kernels that were tried are right and fast on this {self.gpu}"
        )


@functools.cache
def look_up(device: torch.device, module: ModuleType) -> Found:
    """Find the record for a GPU and a compiled module. Read once per process; `look_up.cache_clear` forgets it."""
    gpu, capability = name_and_capability(device)
    path = path_of(gpu, capability)
    try:
        path.stat()  # without a record the module need not be read
        identity = identity_of(device, module)
    except OSError as error:
        return _unreadable(path, gpu, error)
    return read(path, identity)


def identity_of(device: torch.device, module: ModuleType) -> Identity:
    """The GPU `device`, its driver, and a compiled module, whose file is read."""
    return Identity(*name_and_capability(device), driver_version(), fingerprint(module))


def name_and_capability(device: torch.device) -> tuple[str, str]:
    """The name of a GPU and its compute capability, such as ("NVIDIA H200", "9.0")."""
    return torch.cuda.get_device_name(device), ".".join(map(str, torch.cuda.get_device_capability(device)))


def driver_version() -> str:
    """The version of the NVIDIA driver; where its file is missing, the newest CUDA version that the driver knows."""
    try:
        found = re.search(r"\b\d+\.\d+(\.\d+)?\b", DRIVER_FILE.read_text())
    except OSError:
        found = None
    return found[0] if found else f"CUDA {torch._C._cuda_getDriverVersion()}"


def fingerprint(module: ModuleType) -> str:
    """SHA-256 of the file of a compiled module."""
    with open(str(module.__file__), "rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def path_of(gpu: str, capability: str) -> Path:
    """The file of a kind of GPU. It need not exist."""
    # a relative XDG_CACHE_HOME is to be ignored, by the specification of that variable
    cache = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(cache if os.path.isabs(cache) else os.path.expanduser("~/.cache")) / "aapt_fast" / "verified"
    return folder / f"{re.sub(r'[^a-z0-9.]+', '-', f'{gpu} {capability}'.lower()).strip('-')}.json"


def read(path: Path, identity: Identity) -> Found:
    """Read the record in `path`, which counts if it is about `identity`."""
    try:
        record = _from_json(json.loads(path.read_text()))
    except OSError as error:
        return _unreadable(path, identity.gpu, error)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        return Found(path, identity.gpu, problem=f"the record {path} is damaged ({why})")
    made, here = record.identity, identity
    if (made.gpu, made.capability) != (here.gpu, here.capability):
        problem = f"the record {path} is of another GPU, {made.gpu}"
    elif made.driver != here.driver:
        problem = f"the record {path} is of driver {made.driver}, this machine has {here.driver}"
    elif made.build != here.build:
        problem = f"the record {path} is of another build of aapt_fast"
    else:
        return Found(path, here.gpu, record)
    return Found(path, here.gpu, problem=problem)


def _unreadable(path: Path, gpu: str, error: OSError) -> Found:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return Found(path, gpu, problem=f"there is no record of this {gpu} ({path})")
    return Found(path, gpu, problem=f"the record {path} cannot be read ({error.strerror})")


def add(identity: Identity, kernels: Mapping[str, Verified]) -> Record:
    """Write findings about kernels into the record of a GPU, instead of older ones about the same kernels.

    A kernel that was right, but takes none of the shapes that were to be timed, keeps the times of an earlier run.
    A record of another driver or build, or a damaged one, is replaced. Returns the record. Raises OSError where it
    cannot be written; the old file is still there then.
    """
    path = path_of(identity.gpu, identity.capability)
    before = read(path, identity).record
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    known = {} if before is None else before.kernels
    record = Record(identity, {**known, **_with_times(kernels, known)}, torch.__version__, now)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, partial.open("w") as file:
        json.dump({"schema": SCHEMA, **asdict(record)}, file, indent=1, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    return record


def _with_times(kernels: Mapping[str, Verified], known: Mapping[str, Verified]) -> dict[str, Verified]:
    """The findings `kernels`; those that are right and without times with times of `known` ones that were right."""
    found = dict(kernels)
    for name, finding in kernels.items():
        untimed = finding.fault is None and finding.speed is None
        if untimed and name in known and known[name].fault is None:
            found[name] = known[name]
    return found


def _from_json(content: dict[str, Any]) -> Record:
    require(content["schema"] == SCHEMA, "schema", SCHEMA, content["schema"])
    kernels = {name: Verified(**facts) for name, facts in content["kernels"].items()}
    return Record(Identity(**content["identity"]), kernels, str(content["torch"]), str(content["date"]))
