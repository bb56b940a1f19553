# SPDX-License-Identifier: Apache-2.0
"""Time of one latent frame, from the control to four video frames on the host, and the verdict on a target.

Three phases of one process: `cold`, the first step there is; `filling`, while past frames are still fewer than the
window, after that first step has loaded everything; `full`, the steady state, which is what the target is for.
"""

from __future__ import annotations

import functools
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aapt_fast.errors import require
from aapt_fast.models.aapt.config import GeneratorConfig
from aapt_fast.profiling.document import DTYPE_NAMES, result
from aapt_fast.profiling.inputs import random_controls, random_image, random_prompt
from aapt_fast.profiling.kernels import what_runs
from aapt_fast.profiling.stages import INSIDE, STAGES, StepTime, StepTimer, inside_generator
from aapt_fast.profiling.systems import System
from aapt_fast.profiling.timing import Sample, late_by, percentiles
from aapt_fast.streaming.latency import percentile
from aapt_fast.streaming.session import StreamSession

FEWEST_STEPS = 5
SETTLING_STEPS = 2  # with a full window, not counted
FRAMES_PER_STEP = 4
TIMER = "wall clock of a step and the copy to the host"
JUDGED = "p95 of whole steps with a full window, frames on the host"


@dataclass(frozen=True)
class Choice:
    """Device and options of a run."""

    device: torch.device
    dtype: torch.dtype
    cuda_graph: bool = False

    def in_words(self) -> str:
        """Describe it, for example: bf16 weights, eager launches, no CUDA graph."""
        launches = "CUDA graphs" if self.cuda_graph else "eager launches, no CUDA graph"
        return f"{DTYPE_NAMES[self.dtype]} weights, {launches}"


@dataclass(frozen=True)
class Measured:
    """Times of steps by phase, and facts about the run."""

    phases: dict[str, list[StepTime]]
    inside: list[dict[str, float]]  # milliseconds of parts of the generator, in steps that are launched one by one
    start: dict[str, float | None]  # seconds
    memory: dict[str, Any]
    what_ran: dict[str, str]


def measure(system: System, choice: Choice, *, steps: int, limit_s: float) -> Measured:
    """Build the system and time its steps: `steps` with a full window, or, from the fifth on, as many as fit `limit_s`.

    Raises ValueError for fewer than five steps.
    """
    require(steps >= FEWEST_STEPS, "steps", f"at least {FEWEST_STEPS}", steps)
    if choice.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(choice.device)
    begun = time.perf_counter()
    model = system.build(choice.device, choice.dtype)
    built, config = time.perf_counter(), model.config
    assert isinstance(config, GeneratorConfig)
    control, prompt = random_controls(model, 1)[0], random_prompt(model, system.prompt)
    open_session = functools.partial(StreamSession, model, random_image(model), prompt=prompt, seed=7)
    with open_session(cuda_graph=choice.cuda_graph) as session:
        timer = StepTimer(model)
        cold = timer.step(session, control)
        first_frames, since_start = time.perf_counter(), seconds_since_process_start()
        start = {
            "model_s": built - begun,
            "session_s": session.latency.first_frame_s,
            "first_step_s": cold.whole / 1e3,
            "all_s": first_frames - begun,
            "since_process_start_s": since_start,
        }
        session.reset()
        filling = [timer.step(session, control) for _ in range(config.window + 1)]
        for _ in range(SETTLING_STEPS):
            timer.step(session, control)
        full = _steady(timer, session, control, steps, limit_s)
    with open_session() as session:  # launched one by one: no mark falls inside a recording
        for _ in range(config.window + 1):
            session.step(control)
        inside = [inside_generator(session, control) for _ in range(FEWEST_STEPS)]
        ran = what_runs(session, control)
    phases = {"cold": [cold], "filling": filling, "full": full}
    return Measured(phases, inside, start, _memory(system, choice), ran)


def _steady(
    timer: StepTimer, session: StreamSession, control: Tensor | None, steps: int, limit_s: float
) -> list[StepTime]:
    begun = time.perf_counter()
    times: list[StepTime] = []
    while len(times) < steps and (len(times) < FEWEST_STEPS or time.perf_counter() - begun < limit_s):
        times.append(timer.step(session, control))
    return times


def _memory(system: System, choice: Choice) -> dict[str, Any]:
    """Peak memory of this process so far, beside the expected one."""
    expected = {f"expected_{name}_bytes": n for name, n in system.memory(choice.dtype).parts().items()}
    if choice.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(choice.device)
        return {**expected, "peak_bytes": peak, "peak_of": "torch's allocations on the GPU"}
    import resource  # not on every system, and the other commands do without

    unit = 1 if sys.platform == "darwin" else 1024
    peak = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {**expected, "peak_bytes": peak, "peak_of": "the resident memory of the process"}


def seconds_since_process_start() -> float | None:
    """Age of this process, imports included; None where the system does not tell it as Linux does."""
    try:
        words = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        up = float(Path("/proc/uptime").read_text().split()[0])
    except OSError:
        return None
    started = int(words[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5), after boot
    return up - started


def results(system: System, choice: Choice, measured: Measured) -> list[dict[str, Any]]:
    """Make one result per phase, with its stages."""
    width, height = system.size
    flops = system.step.generator_flops + system.step.decoder_flops
    inside = {part: {"p50_ms": percentile([step[part] for step in measured.inside], 50)} for part in INSIDE}
    entries = []
    for phase, times in measured.phases.items():
        sample, full = Sample(tuple(each.whole for each in times), None, TIMER), phase == "full"
        entry = result(
            f"frame/{system.preset}/{width}x{height}/{DTYPE_NAMES[choice.dtype]}/{phase}",
            sample,
            choice.in_words(),
            tflops=flops / sample.p50 / 1e9 if full else None,
            ours=True,
            phase=phase,
            geometry={"width": width, "height": height, "window": system.config.window, "nfe": 1},
            stages={stage: percentiles([each.stages[stage] for each in times]) for stage in STAGES},
            inside_generator=inside if full else None,
            video_fps=1e3 * FRAMES_PER_STEP / sample.p50,
            decoder=system.decoder,
            weights="bundled" if system.bundled else "random",
        )
        entries.append(entry)
    return entries


def verdict(measured: Measured, target_s: float) -> dict[str, Any]:
    """Compare the steady state with a target: met or missed, jitter, slowing down, lateness at the target's pace."""
    full = measured.phases["full"]
    times = [each.whole for each in full]
    third = -(-len(times) // 3)
    judged, target_ms = percentile(times, 95), 1e3 * target_s
    late = late_by(times, target_ms)
    late_steps = sum(each > 0 for each in late)
    return {
        "target_ms": target_ms,
        "judged": JUDGED,
        "judged_ms": judged,
        "met": judged <= target_ms,
        "jitter_ms": percentile(times, 99) - percentile(times, 50),
        "jitter_is": "p99 - p50",
        "last_to_first": statistics.median(times[-third:]) / statistics.median(times[:third]),
        "last_to_first_is": f"median of the last {third} of {len(times)} steps over that of the first {third}",
        "outside_share": statistics.median(1 - sum(each.stages.values()) / each.whole for each in full),
        "outside_is": "of a step lies outside of its stages: the host's share, where the GPU waits for it",
        "at_this_pace": {
            "period_ms": target_ms,
            "steps": len(late),
            "late_steps": late_steps,
            "late_share": late_steps / len(late),
            **{f"p{percent}_late_ms": percentile(late, percent) for percent in (50, 95, 99)},
            "max_late_ms": max(late),
        },
    }
