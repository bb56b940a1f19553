# SPDX-License-Identifier: Apache-2.0
"""`aapt-fast verify`: every kernel in a process of its own, and the record of those that are right and fast.

The findings about a kernel are recorded as soon as its process has ended. A run that is interrupted keeps them; kernels
that it has not reached stay as they were.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from aapt_fast.errors import require
from aapt_fast.limits import require_folder
from aapt_fast.ops import KERNELS, record
from aapt_fast.ops._load import extension
from aapt_fast.ops.kernels import Selection, forget_record, obstacle
from aapt_fast.ops.record import Identity
from aapt_fast.verification.cases import SUITES, Shape
from aapt_fast.verification.one_kernel import Finding, Job, Tell
from aapt_fast.verification.processes import Outcome, run_limited
from aapt_fast.verification.report import Report
from aapt_fast.verification.shapes import timed_shapes

LIMIT_S = 180.0
"""Seconds for one kernel, the start of its process and torch.compile included."""

Examine = Callable[[Job], Finding]


@dataclass(frozen=True)
class Place:
    """A GPU and the compiled module whose kernels are verified on it."""

    device: str
    identity: Identity
    module: Path | None = None
    """File of the compiled module; None: `aapt_fast._C`."""
    compiled: bool = True
    """Also time torch's operators through torch.compile."""


def verify(
    kernels: Sequence[str] | None = None, *, shapes: str | Path | None = None, tell: Tell = lambda line: None
) -> Report:
    """Try kernels on the current GPU, time them against torch, and record which ones run by themselves from now on.

    Every kernel runs in a process of its own with a time limit. The record counts at once, in this process, too.

    Args:
        kernels: names such as "kv_write/portable"; None means all that this GPU can run, attention first.
        shapes: a model at whose shapes the kernels are timed: a preset such as "aapt-8b", a bundled model, or a file or
            folder of `save_pretrained`. None means shapes of several models.
        tell: gets lines about the progress.

    Returns:
        A report: `passed`, `on()`, `off()`, `table()`, `in_words()` and `as_dict()`.

    Raises:
        ValueError: no GPU that a kernel can run on, an unknown kernel or model, a model that does not stream, or a
            folder of the record that cannot be written to.
        CheckpointError: a file that is damaged, or no model of this package.
        TypeError: `shapes` of another type.
        OSError: the record cannot be written.
    """
    require(not isinstance(kernels, str), "kernels", "a list of names", kernels)
    in_order = (name for op in SUITES for name, kernel in KERNELS.items() if kernel.op == op)
    names = tuple(in_order) if kernels is None else tuple(kernels)
    unknown = [name for name in names if name not in KERNELS]
    require(not unknown and bool(names), "kernels", f"some of {', '.join(KERNELS)}", ", ".join(unknown) or "none")
    timed = timed_shapes(shapes)
    expected = "a GPU, on which the kernels are to run, and a torch with CUDA"
    require(torch.cuda.is_available(), "this machine", expected, "none")
    device = torch.device("cuda", torch.cuda.current_device())
    cannot_run = _obstacles(device)
    refused = [name for name in names if name in cannot_run]
    if kernels is not None and refused:
        raise ValueError(f"kernels: expected kernels that can run here, got {refused[0]}: {cannot_run[refused[0]]}")
    anywhere = "a GPU and a build that kernels can run on"
    require(len(refused) < len(names), "this machine", anywhere, cannot_run.get(names[-1]))
    identity = record.identity_of(device, extension())
    report = run(Place(str(device), identity), [name for name in names if name not in refused], timed, tell=tell)
    return replace(report, cannot_run=cannot_run)


def _obstacles(device: torch.device) -> dict[str, str]:
    """The kernels that the GPU or the build cannot run, with the reason."""
    everything = Selection(("all",))
    reasons = {name: obstacle(kernel, device, everything) for name, kernel in KERNELS.items()}
    return {name: why for name, why in reasons.items() if why is not None}


def run(
    place: Place,
    names: Sequence[str],
    shapes: Mapping[str, tuple[Shape, ...]],
    *,
    examine: Examine | None = None,
    tell: Tell = lambda line: None,
) -> Report:
    """Examine kernels one after the other, and record the findings about each before the next one begins.

    Args:
        place: GPU and module.
        names: kernels.
        shapes: to time, by op.
        examine: gives the findings about one kernel; None means `in_own_process`.
        tell: gets lines about the progress.

    Raises:
        ValueError: the folder of the record cannot be written to; nothing has run then.
        OSError: the record cannot be written.
    """
    path = record.path_of(place.identity.gpu, place.identity.capability)
    require_folder("the folder of the record, which XDG_CACHE_HOME moves", path.parent)
    findings = []
    for number, name in enumerate(names, 1):
        tell(f"{number}/{len(names)} {name}: checks, then times")
        module = None if place.module is None else str(place.module)
        job = Job(name, place.device, shapes[KERNELS[name].op], module, place.compiled)
        finding = (examine or in_own_process)(job)
        known = record.add(place.identity, {name: finding.verified()})
        forget_record()
        findings.append(finding)
        tell(f"    {finding.fault or f'right in {finding.checks} checks'} ({finding.seconds:.0f} s)")
    return Report(tuple(findings), known, path, {})


def in_own_process(job: Job, limit_s: float = LIMIT_S) -> Finding:
    """Examine a kernel in a new process, which is ended after `limit_s` seconds."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "finding.json"
        program = [sys.executable, "-m", "aapt_fast.verification.one_kernel"]
        outcome = run_limited([*program, json.dumps(asdict(job)), str(result)], limit_s)
        if outcome.status == "passed":
            return Finding.from_json(json.loads(result.read_text()))
    return Finding(job.kernel, outcome.seconds, fault=_end(job, outcome, limit_s), details=outcome.output[-20_000:])


def _end(job: Job, outcome: Outcome, limit_s: float) -> str:
    """The way in which a process ended that gave no finding."""
    steps = [line for line in outcome.output.splitlines() if line.startswith(job.kernel)]
    step = steps[-1] if steps else "the start of its process"
    if outcome.returncode is None:
        return f"it did not end within {limit_s:g} s, in {step}"
    if outcome.returncode < 0:
        return f"{signal.Signals(-outcome.returncode).name} ended its process, in {step}"
    return f"its process ended with status {outcome.returncode}, in {step}"
