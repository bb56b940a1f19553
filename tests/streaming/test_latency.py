# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from aapt_fast.streaming.latency import LatencyCounter


def test_percentiles_are_of_the_last_steps():
    counter = LatencyCounter(kept=100)
    for milliseconds in [*range(1000, 1050), *range(100, 0, -1)]:
        counter.record_step(milliseconds / 1e3)
    assert counter.count == 150
    assert counter.step_ms == pytest.approx({"p50": 50, "p95": 95, "p99": 99})


def test_before_the_first_step():
    empty = {"first_frame_s": 0.0, "step_ms": {"p50": None, "p95": None, "p99": None}, "count": 0}
    assert LatencyCounter().as_dict() == empty


def test_a_single_step_is_every_percentile():
    counter = LatencyCounter()
    counter.record_step(0.02)
    assert counter.step_ms == pytest.approx({"p50": 20, "p95": 20, "p99": 20})


def test_the_representation():
    counter = LatencyCounter()
    assert repr(counter) == "LatencyCounter(count=0, first_frame_s=0.000)"
    counter.record_step(0.02)
    assert repr(counter) == "LatencyCounter(count=1, first_frame_s=0.000, p50=20.0ms p95=20.0ms p99=20.0ms)"
