# SPDX-License-Identifier: Apache-2.0
"""Times of calls that take turns, so that other work on the machine meets all of them alike.

On a GPU a time lies between two CUDA events around the call. Before each timed call and outside of it, either twice the
L2 is overwritten (cold), or the same call runs once untimed (warm). Without a GPU it is the wall clock, and nothing is
known about the caches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

import torch

from aapt_fast.profiling.timing import Sample

Call = Callable[[], object]

REPETITIONS = 100
FEWEST_REPETITIONS = 5
WARM_UPS = 25


class Clock(Protocol):
    """Protocol of a timer: starts calls, and returns their times after the last one."""

    name: str
    knows_caches: bool

    def start(self, call: Call, cold_l2: bool) -> None:
        """Run `call` once, timed."""
        ...

    def finish(self) -> list[float]:
        """Return the milliseconds of all calls since the last `finish`, in order."""
        ...


class WallClock:
    """Timer for calls that have finished when they return."""

    name = "wall clock on a CPU"
    knows_caches = False

    def __init__(self) -> None:
        self._times: list[float] = []

    def start(self, call: Call, cold_l2: bool) -> None:
        begun = time.perf_counter()
        call()
        self._times.append(1e3 * (time.perf_counter() - begun))

    def finish(self) -> list[float]:
        times, self._times = self._times, []
        return times


class EventClock:
    """Timer of CUDA events on the current stream."""

    name = "CUDA events"
    knows_caches = True

    def __init__(self, device: torch.device) -> None:
        l2 = torch.cuda.get_device_properties(device).L2_cache_size
        self._cover = torch.empty(2 * l2, dtype=torch.uint8, device=device)
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def start(self, call: Call, cold_l2: bool) -> None:
        # Either way the GPU is busy while the next lines queue the timed call, so that no gap is timed.
        if cold_l2:
            self._cover.fill_(len(self._events) % 251)
        else:
            call()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        self._events.append((begin, end))

    def finish(self) -> list[float]:
        torch.cuda.synchronize()
        times = [begin.elapsed_time(end) for begin, end in self._events]
        self._events = []
        return times


def clock_for(device: torch.device) -> Clock:
    """Make the timer for calls on this device."""
    return EventClock(device) if device.type == "cuda" else WallClock()


def time_interleaved(
    calls: Mapping[str, Call],
    clock: Clock,
    *,
    cold_l2: bool = True,
    repetitions: int = REPETITIONS,
    warm_ups: int = WARM_UPS,
    limit_s: float = 20.0,
) -> dict[str, Sample]:
    """Time calls in turn, the order rotating from round to round.

    Args:
        calls: by name; each does the same work on the same data.
        clock: of the device they run on.
        cold_l2: overwrite the L2 before each timed call, else run the same call before it.
        repetitions: rounds; fewer, but at least 5, where the time does not suffice.
        warm_ups: rounds before, untimed; fewer, but at least two, likewise.
        limit_s: seconds that all rounds together should stay below.
    """
    round_s = _warm_up(calls, clock, cold_l2, warm_ups, limit_s / 4)
    rounds = min(repetitions, max(FEWEST_REPETITIONS, int(0.75 * limit_s / max(round_s, 1e-9))))
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        turn = names[number % len(names) :] + names[: number % len(names)]
        for name in turn:
            clock.start(calls[name], cold_l2)
        for name, milliseconds in zip(turn, clock.finish(), strict=True):
            times[name].append(milliseconds)
    cold = cold_l2 if clock.knows_caches else None
    return {name: Sample(tuple(values), cold, clock.name) for name, values in times.items()}


def _warm_up(calls: Mapping[str, Call], clock: Clock, cold_l2: bool, warm_ups: int, limit_s: float) -> float:
    """Run up to `warm_ups` rounds, at least two; returns the seconds of the last. The first also loads and compiles."""
    begun = time.perf_counter()
    round_s = 0.0
    for number in range(max(warm_ups, 2)):
        if number == 1:
            begun = time.perf_counter()
        started = time.perf_counter()
        for call in calls.values():
            clock.start(call, cold_l2)
        clock.finish()
        round_s = time.perf_counter() - started
        if number and time.perf_counter() - begun > limit_s:
            break
    return round_s


def captured(call: Call) -> Call:
    """Capture the call as a CUDA graph, without launches between its kernels. Raises RuntimeError where that fails."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay
