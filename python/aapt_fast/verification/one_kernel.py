# SPDX-License-Identifier: Apache-2.0
"""Everything that `aapt-fast verify` does with one kernel, and the program of the process that does it.

    python -m aapt_fast.verification.one_kernel JOB RESULT

JOB is a `Job` as JSON, RESULT the file for the `Finding`. The process prints a line before each step, so that the last
line tells where a kernel hung or ended the process.
"""

from __future__ import annotations

import faulthandler
import json
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from aapt_fast.errors import require
from aapt_fast.ops import KERNELS, observe_ops, use_kernels
from aapt_fast.ops._load import extension, load_file
from aapt_fast.ops.kernels import Kernel
from aapt_fast.ops.record import Verified
from aapt_fast.profiling.interleaved import Clock, clock_for, time_interleaved
from aapt_fast.verification.case import Case, Setting, check
from aapt_fast.verification.cases import SUITES, Shape
from aapt_fast.verification.edge_cases import EDGE_CASES, EdgeCase
from aapt_fast.verification.judge import against_best, require_right
from aapt_fast.verification.launches import require_replay, require_stream

TIMING_S, REPETITIONS = 3.0, 50
"""Seconds for the times of one shape, about, and repetitions at most."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """A kernel to examine."""

    kernel: str
    device: str
    shapes: tuple[Shape, ...]
    """Shapes to time, as `SUITES` has them."""
    module: str | None = None
    """File of the compiled module; None: `aapt_fast._C`."""
    compiled: bool = True
    """Also time torch's operators through torch.compile."""


@dataclass(frozen=True)
class Timing:
    """Times at one shape."""

    case: str
    milliseconds: dict[str, float]
    """Medians, of all systems that ran."""
    best: str
    """The fastest of torch's that can stand in for the kernel."""
    times_as_fast: float
    """Its time over the kernel's."""


@dataclass(frozen=True)
class Finding:
    """The findings about one kernel, ready for JSON."""

    kernel: str
    seconds: float
    checks: int = 0
    """Calls with edge cases that were right."""
    fault: str | None = None
    details: str | None = None
    """Traceback or output that belongs to the fault."""
    timings: tuple[Timing, ...] = ()
    untimed: dict[str, str] = field(default_factory=dict)
    """Shapes without a time, with the reason."""

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Finding:
        """The finding of which `dataclasses.asdict` and JSON have made `content`."""
        return cls(**{**content, "timings": tuple(Timing(**each) for each in content["timings"])})

    def verified(self) -> Verified:
        """The part that goes into the record."""
        return Verified(self.fault, {timing.case: timing.times_as_fast for timing in self.timings})


@torch.no_grad()
def examine(job: Job, tell: Tell = print, clock: Clock | None = None) -> Finding:
    """Check a kernel, then time it. An error is the kernel's fault and ends the examination.

    Args:
        job: the kernel and its shapes.
        tell: gets a line before each step.
        clock: None means CUDA events on a GPU, else the wall clock.
    """
    begun = time.monotonic()
    kernel, device = KERNELS[job.kernel], torch.device(job.device)
    checks, timings, untimed = 0, [], {}
    fault = details = None
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        module = extension() if job.module is None else load_file(Path(job.module))
        for what in _edge_cases(kernel, device, module):
            tell(what.name)
            _check(kernel, what, module)
            checks += 1
        for shape in job.shapes:
            case_name, found = _time(kernel, shape, job, module, clock or clock_for(device), tell)
            if isinstance(found, Timing):
                timings.append(found)
            else:
                untimed[case_name] = found
    except Exception as error:
        fault, details = f"{type(error).__name__}: {' '.join(str(error).split())}"[:500], traceback.format_exc()
    return Finding(job.kernel, time.monotonic() - begun, checks, fault, details, tuple(timings), untimed)


# ---- results ----


@dataclass(frozen=True)
class _Check:
    """An edge case on a device, with streams and captures or without."""

    name: str
    case: EdgeCase
    launches: bool


def _edge_cases(kernel: Kernel, device: torch.device, module: ModuleType) -> Iterator[_Check]:
    """Every edge case in each dtype and head width; the cases of the first ones again on a second GPU."""
    for dtype in kernel.dtypes:
        for width in kernel.widths or (None,):
            heads = "" if width is None else f", heads of width {width}"
            setting = Setting(device, dtype, extension=module)
            for case in EDGE_CASES[kernel.op](setting, width):
                yield _Check(f"{kernel.name}, {dtype}{heads}: {case.name}", case, device.type == "cuda")
    for other in _second_device(kernel, device):
        setting = Setting(other, kernel.dtypes[0], extension=module)
        for case in EDGE_CASES[kernel.op](setting, kernel.widths[0] if kernel.widths else None):
            yield _Check(f"{kernel.name} on {other}, which is not the current device: {case.name}", case, False)


def _second_device(kernel: Kernel, device: torch.device) -> list[torch.device]:
    """Another GPU that the kernel is compiled for, if there is one."""
    if device.type != "cuda":
        return []
    others = [torch.device("cuda", index) for index in range(torch.cuda.device_count()) if index != device.index]
    return [other for other in others if kernel.runs_on(torch.cuda.get_device_capability(other))][:1]


def _check(kernel: Kernel, what: _Check, module: ModuleType) -> None:
    """Raise ValueError unless the kernel gives the right results, whatever the stream and in a replay, too."""
    with use_kernels(kernel.name, extension=module), _poisoned_memory():
        with observe_ops() as calls:
            results = what.case.call()
        ran = set(calls.counts[kernel.op])
        require(ran == {kernel.name}, kernel.op, f"a run of {kernel.name}", ", ".join(ran))
        _wait(results)
        try:
            require_right(results, what.case)
            if what.launches:
                require_stream(what.case, results)
                require_replay(what.case, results)
        except ValueError as error:
            raise ValueError(f"{what.name}: {error}") from error


@contextmanager
def _poisoned_memory() -> Iterator[None]:
    """Make torch.empty give NaN: memory that a kernel does not write cannot pass for a result."""
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("warn")  # torch.use_deterministic_algorithms would import the compiler
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)


def _wait(results: tuple[Tensor, ...]) -> None:
    """Wait for the GPU of the results [...]; raises RuntimeError if a kernel broke its context."""
    if results[0].is_cuda:
        torch.cuda.synchronize(results[0].device)


# ---- times ----


def _time(
    kernel: Kernel, shape: Shape, job: Job, module: ModuleType, clock: Clock, tell: Tell
) -> tuple[str, Timing | str]:
    """The name of the case, and its times or the reason why there are none. Raises where the results are wrong."""
    suite, device = SUITES[kernel.op], torch.device(job.device)
    setting = Setting(device, suite.dtype, job.compiled, module, kernels=(kernel.name,))
    name = Case(kernel.op, shape, suite.dtype, 0, 0).label
    tell(f"{kernel.name}: times of {name}")
    try:
        case = suite.build(shape, setting)
        running, failures = check(case)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return name, "out of memory"
    if kernel.name in failures:
        return name, _excuse(failures[kernel.name], module)
    calls = {system: call for system, call in running.items() if system not in case.other_numbers}
    rivals = [system for system in calls if system not in case.ours and system not in case.elsewhere]
    if not rivals:
        return name, "no torch code for it runs here"
    samples = time_interleaved(calls, clock, repetitions=REPETITIONS, limit_s=TIMING_S)
    best, ratio = against_best(samples, kernel.name, rivals)
    return name, Timing(name, {system: sample.p50 for system, sample in samples.items()}, best, ratio)


def _excuse(reason: str | Exception, module: ModuleType) -> str:
    """The reason why a kernel has no time at a shape, if it is not a fault; a fault is raised."""
    if isinstance(reason, module.Unsupported):
        return f"the kernel does not take it: {reason}"
    if isinstance(reason, torch.OutOfMemoryError):
        return "out of memory"
    raise reason if isinstance(reason, Exception) else RuntimeError(reason)


def main() -> None:
    """Run the program."""
    faulthandler.enable()
    faulthandler.register(signal.SIGTERM, chain=True)  # shows where it hung when its time is up
    content = json.loads(sys.argv[1])
    torch.manual_seed(0)
    finding = examine(Job(**{**content, "shapes": tuple(map(tuple, content["shapes"]))}))
    Path(sys.argv[2]).write_text(json.dumps(asdict(finding)))


if __name__ == "__main__":
    main()
