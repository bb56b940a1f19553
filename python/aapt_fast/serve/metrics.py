# SPDX-License-Identifier: Apache-2.0
"""Numbers of a server for Prometheus, and a simulated viewer who notices every stall."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from aapt_fast.streaming.latency import PERCENTILES, percentile
from aapt_fast.worlds.world import FPS

NAME = "aapt_fast"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.125, 0.15, 0.1667, 0.18, 0.2, 0.25, 0.3334, 0.5, 1, 2.5, 5, 10)
KEPT = 2048  # inter-arrival times for the percentiles


class SimulatedViewer:
    """Shows one video frame every 1/24 s, from one step's length after the first on, and counts the late ones.

    Args:
        buffer: seconds of video that it collects before it begins, and again after a stall.
    """

    def __init__(self, buffer: float) -> None:
        self._buffer = buffer
        self._due: float | None = None
        self.stalls = 0

    def arrive(self, now: float, frames: int) -> int:
        """Video frames have come; returns the number of stalls that they end, 0 or 1."""
        late = self._due is not None and now > self._due
        if self._due is None or late:
            self._due = now + self._buffer
        self._due += frames / FPS
        self.stalls += late
        return int(late)

    def begin_again(self) -> None:
        """Wait for the next frame without a stall: the stream was paused, reset or rewound."""
        self._due = None


class Metrics:
    """All numbers of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._intervals: deque[float] = deque(maxlen=KEPT)
        self.first_frame = self._histogram("first_frame_seconds", "From the message open to the first picture sent")
        self.interval = self._histogram("step_interval_seconds", "Between two steps of a running stream")
        self.step = self._histogram("step_seconds", "Of the engine, for one step: generator and decoder")
        self.encode = self._histogram("encode_seconds", "Of the encoder, for one picture")
        self.control = self._histogram("control_applied_seconds", "From a control to the step that obeys it")
        self.steps = self._counter("steps", "Steps of all streams")
        self.late_steps = self._counter("late_steps", "Steps that began more than a period after they were due")
        self.stalls = self._counter("viewer_stalls", "Stalls of simulated viewers, one per real viewer")
        self.dropped = self._counter("dropped_steps", "Steps that were dropped for slow viewers")
        self.slow = self._counter("slow_viewers", "Viewers that were closed since they took nothing")
        self.bad_messages = self._counter("bad_messages", "Messages that were answered with an error")
        self._gauge("deadline_attainment", "Share of the steps that were not late", self._attainment)
        self._percentile_gauges()

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Report what `value` returns whenever somebody reads the metrics."""
        self._gauge(name, text, value)

    def record_interval(self, seconds: float) -> None:
        """Note the time between two steps of one stream."""
        self.interval.observe(seconds)
        self._intervals.append(seconds)

    def text(self) -> bytes:
        """The metrics in the format of Prometheus."""
        return generate_latest(self._registry)

    def _attainment(self) -> float:
        steps, late = (each._value.get() for each in (self.steps, self.late_steps))
        return 1 - late / steps if steps else 1.0

    def _percentile_gauges(self) -> None:
        text = f"Percentile of the last {KEPT} times between two steps"
        gauge = Gauge(f"{NAME}_step_interval_percentile_seconds", text, ["percent"], registry=self._registry)
        for percent in PERCENTILES:
            gauge.labels(str(percent)).set_function(
                lambda percent=percent: percentile(self._intervals, percent) if self._intervals else 0.0
            )

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"{NAME}_{name}", text, buckets=SECONDS, registry=self._registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"{NAME}_{name}", text, registry=self._registry)

    def _gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        Gauge(f"{NAME}_{name}", text, registry=self._registry).set_function(value)
