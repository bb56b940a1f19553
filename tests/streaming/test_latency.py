# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from aapt_fast.streaming.latency import LatencyCounter


def test_percentiles_are_of_the_last_steps():
    counter = LatencyCounter(kept=100)
    for milliseconds in [*range(1000, 1050), *range(100, 0, -1)]:
        counter.record_step(milliseconds / 1e3, 4)
    assert counter.count == 150
    assert counter.step_ms == pytest.approx({"p50": 50, "p95": 95, "p99": 99})


def test_before_the_first_step():
    empty = {"first_frame_s": 0.0, "step_ms": {"p50": None, "p95": None, "p99": None}, "count": 0}
    empty |= {"fps": None, "real_time_fps": 24.0, "keeps_real_time": None}
    assert LatencyCounter().as_dict() == empty


def test_a_single_step_is_every_percentile():
    counter = LatencyCounter()
    counter.record_step(0.02, 4)
    assert counter.step_ms == pytest.approx({"p50": 20, "p95": 20, "p99": 20})


def test_the_representation():
    counter = LatencyCounter()
    assert repr(counter) == "LatencyCounter(count=0, first_frame_s=0.000)"
    counter.record_step(0.02, 4)
    assert (
        repr(counter)
        == "LatencyCounter(count=1, first_frame_s=0.000, p50=20.0ms p95=20.0ms p99=20.0ms, 200.0 fps (real time is 24))"
    )


def test_frames_per_second_are_of_the_last_steps_and_beside_real_time():
    counter = LatencyCounter(kept=2)
    for seconds, frames in ((9.0, 4), (0.05, 1), (0.2, 4)):  # a run without an image begins with fewer frames
        counter.record_step(seconds, frames)
    assert counter.fps == pytest.approx(20) and counter.keeps_real_time is False
    assert repr(counter).endswith(", 20.0 fps (real time is 24, not kept))")
    counter.record_step(0.01, 4)
    assert counter.as_dict()["fps"] == pytest.approx(8 / 0.21) and counter.keeps_real_time is True
