# SPDX-License-Identifier: Apache-2.0
"""Time of a step by stages: hooks around the generator or its recording, marks around everything else.

condition: from the call until the generator begins: controls, pages; generator: noise, and its forward call with all
blocks, keys and values; decode: until the frames are complete; to host: the copy that an encoder or a socket reads.

Inside the generator, in steps of their own because so many marks cost time: keys and values written to their pages,
attention over the pages, and the rest.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

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


class _HostEvent:
    """A mark in the host's time, with the methods of `torch.cuda.Event`."""

    def record(self) -> None:
        self._seconds = time.perf_counter()

    def elapsed_time(self, later: _HostEvent) -> float:
        """Milliseconds until the mark `later`."""
        return 1e3 * (later._seconds - self._seconds)


def _mark(cuda: bool) -> Any:
    """A mark at this point: a CUDA event where the steps run on a GPU, else the wall clock."""
    event = torch.cuda.Event(enable_timing=True) if cuda else _HostEvent()
    event.record()
    return event


class StepTimer:
    """Takes steps of sessions of one model, one evaluation each, and times them.

    On a CPU a stage is wall clock. On a GPU it lies between two CUDA events, and the stages add up to less than the
    whole where the GPU waits for the host.
    """

    def __init__(self, model: StreamModel) -> None:
        self._cuda = model.device.type == "cuda"
        self._host: Tensor | None = None

    def step(self, session: StreamSession, control: Tensor | None) -> StepTime:
        """Take a step of `session`, with control [entries, J, 3] or [entries, C, h, w] or None, and copy its frames."""
        marks: list[Any] = []
        session.on_stage = lambda stage: marks.append(_mark(self._cuda))
        begun = time.perf_counter()
        marks.append(_mark(self._cuda))
        try:
            frames = session.step(control)
        finally:
            session.on_stage = None
        marks.append(_mark(self._cuda))
        self._copy(frames)
        marks.append(_mark(self._cuda))
        if self._cuda:
            torch.cuda.synchronize()
        whole = 1e3 * (time.perf_counter() - begun)
        between = [first.elapsed_time(second) for first, second in pairwise(marks)]
        return StepTime(whole, dict(zip(STAGES, between, strict=True)))

    def _copy(self, frames: Tensor) -> None:
        if self._host is None or self._host.shape != frames.shape:
            self._host = torch.empty(frames.shape, dtype=frames.dtype, pin_memory=self._cuda)
        self._host.copy_(frames, non_blocking=True)


def inside_generator(session: StreamSession, control: Tensor | None) -> dict[str, float]:
    """Take a step of `session`, whose steps are not recorded: milliseconds of the generator by part, see `INSIDE`.

    control [entries, J, 3] or [entries, C, h, w] or None.
    """
    cuda = session.model.device.type == "cuda"
    calls: list[tuple[str, Any, Any]] = []  # op, begin, end

    @contextmanager
    def timed(op: str) -> Iterator[None]:
        begin = _mark(cuda)
        yield
        calls.append((op, begin, _mark(cuda)))

    with observe_ops(timed):
        whole = StepTimer(session.model).step(session, control).stages["generator"]
    parts = {
        part: sum(begin.elapsed_time(end) for op, begin, end in calls if op == timed_op)
        for timed_op, part in OPS.items()
    }
    return {**parts, "rest": max(whole - sum(parts.values()), 0.0)}
