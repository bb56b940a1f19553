# SPDX-License-Identifier: Apache-2.0
"""Time of a step by stages: hooks around the generator or its recording, marks around everything else.

condition: from the call until the generator begins: controls, noise, pages; generator: its forward call with all
blocks, keys and values; decode: until the frames are complete; to host: the copy that an encoder or a socket reads.

Inside the generator, in steps of their own because so many marks cost time: keys and values written to their pages,
attention over the pages, and the rest.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from aapt_fast.models.stream_model import StreamModel
from aapt_fast.ops import observe_ops
from aapt_fast.streaming.session import StreamSession

STAGES = ("condition", "generator", "decode", "to host")
OPS = {"kv_write": "keys and values", "paged_attention": "attention"}
INSIDE = (*OPS.values(), "rest")
"""Parts of the generator."""


@dataclass(frozen=True)
class StepTime:
    """Milliseconds of one step: all of it by the wall clock, and each stage."""

    whole: float
    stages: dict[str, float]


class StepTimer:
    """Takes steps of sessions of one model, one evaluation each, and times them.

    On a CPU a stage is wall clock. On a GPU it lies between two CUDA events, and the stages add up to less than the
    whole where the GPU waits for the host.
    """

    def __init__(self, model: StreamModel) -> None:
        self._cuda = model.device.type == "cuda"
        self._times: list[float] = []  # on a CPU
        self._events: list[torch.cuda.Event] = []
        self._host: Tensor | None = None

    def step(self, session: StreamSession, control: Tensor | None) -> StepTime:
        """Take a step of `session`, with control [entries, J, 3] or [entries, C, h, w] or None, and copy its frames."""
        self._times, self._events = [], []
        session.on_stage = lambda stage: self._mark()
        begun = time.perf_counter()
        self._mark()
        try:
            frames = session.step(control)
        finally:
            session.on_stage = None
        self._mark()
        self._copy(frames)
        self._mark()
        if self._cuda:
            torch.cuda.synchronize()
        whole = 1e3 * (time.perf_counter() - begun)
        if self._cuda:
            between = [first.elapsed_time(second) for first, second in pairwise(self._events)]
        else:
            between = [1e3 * (second - first) for first, second in pairwise(self._times)]
        return StepTime(whole, dict(zip(STAGES, between, strict=True)))

    def _copy(self, frames: Tensor) -> None:
        if self._host is None or self._host.shape != frames.shape:
            self._host = torch.empty(frames.shape, dtype=frames.dtype, pin_memory=self._cuda)
        self._host.copy_(frames, non_blocking=True)

    def _mark(self) -> None:
        if not self._cuda:
            self._times.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._events.append(event)


def inside_generator(session: StreamSession, control: Tensor | None) -> dict[str, float]:
    """Take a step of `session`, whose steps are not recorded: milliseconds of the generator by part, see `INSIDE`.

    control [entries, J, 3] or [entries, C, h, w] or None.
    """
    timer = _OpTimer(session.model.device.type == "cuda")
    with observe_ops(timer.around):
        whole = StepTimer(session.model).step(session, control).stages["generator"]
    parts = {part: timer.milliseconds(op) for op, part in OPS.items()}
    return {**parts, "rest": max(whole - sum(parts.values()), 0.0)}


class _OpTimer:
    """Times op calls: by wall clock on a CPU, between two CUDA events on a GPU."""

    def __init__(self, cuda: bool) -> None:
        self._cuda = cuda
        self._seconds: dict[str, float] = defaultdict(float)  # on a CPU
        self._events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = defaultdict(list)

    @contextmanager
    def around(self, op: str) -> Iterator[None]:
        """Time one call of `op`."""
        if not self._cuda:
            begun = time.perf_counter()
            yield
            self._seconds[op] += time.perf_counter() - begun
            return
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        yield
        end.record()
        self._events[op].append((begin, end))

    def milliseconds(self, op: str) -> float:
        """The time of all calls of `op`, once they have been computed."""
        return 1e3 * self._seconds[op] + sum(begin.elapsed_time(end) for begin, end in self._events[op])
