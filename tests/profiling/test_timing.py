# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import types

import pytest
import torch
from bench.harness.ceilings import Ceilings, measure

from aapt_fast.profiling.interleaved import FEWEST_REPETITIONS, EventClock, WallClock, time_interleaved
from aapt_fast.profiling.timing import Sample
from aapt_fast.streaming.latency import percentile


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 1), (1, 1), (50, 50), (50.1, 51), (95, 95), (99, 99), (99.1, 100), (100, 100)]
)
def test_percentiles_by_nearest_rank(percent, expected):
    values = [float(value) for value in torch.randperm(100) + 1]
    assert percentile(values, percent) == expected


def test_percentiles_of_few_values():
    assert percentile([3.0], 99) == 3.0
    assert percentile([2.0, 1.0], 50) == 1.0
    with pytest.raises(ValueError, match="at least one"):
        percentile([], 50)


def test_a_sample_knows_its_ratio_and_its_noise():
    ours, other = Sample((1.0, 1.0, 10.0), True, "t"), Sample((2.0, 3.0, 20.0), True, "t")
    assert ours.times(other) == 2.0  # neighbours: 2, 3 and 2; the busy moment hit both
    assert Sample((1.0, 2.0, 1.0, 2.0), True, "t").noise == 1.0
    assert Sample((1.0,), True, "t").noise == 0.0
    assert ours.as_dict()["p50_ms"] == 1.0 and ours.as_dict()["p99_ms"] == 10.0


class ScriptedClock:
    """Gives each call the time that is written for it, and remembers the order."""

    name, knows_caches = "scripted", True

    def __init__(self, milliseconds: dict[str, float]) -> None:
        self.milliseconds, self.order, self.cold, self._times = milliseconds, [], [], []

    def start(self, call, cold_l2: bool) -> None:
        name = call()
        self.order.append(name)
        self.cold.append(cold_l2)
        self._times.append(self.milliseconds[name])

    def finish(self) -> list[float]:
        times, self._times = self._times, []
        return times


def test_calls_take_turns_and_times_go_to_the_right_ones():
    clock = ScriptedClock({"a": 1.0, "b": 2.0, "c": 3.0})
    calls = {name: lambda name=name: name for name in "abc"}
    samples = time_interleaved(calls, clock, repetitions=4, warm_ups=2, cold_l2=False)
    assert {name: sample.milliseconds for name, sample in samples.items()} == {
        "a": (1.0,) * 4,
        "b": (2.0,) * 4,
        "c": (3.0,) * 4,
    }
    assert "".join(clock.order) == "abcabc" + "abcbcacababc"
    assert set(clock.cold) == {False} and samples["a"].cold_l2 is False


def test_slow_calls_get_fewer_repetitions_but_not_too_few():
    clock = ScriptedClock({"a": 1.0})
    assert len(time_interleaved({"a": lambda: "a"}, clock, limit_s=0.0)["a"].milliseconds) == FEWEST_REPETITIONS


def test_the_wall_clock_counts_the_call_and_knows_no_cache():
    event = torch.zeros(1)
    samples = time_interleaved({"a": lambda: event.add_(1)}, WallClock(), repetitions=7, warm_ups=3)
    assert event.item() == 10 and len(samples["a"].milliseconds) == 7
    assert samples["a"].cold_l2 is None and min(samples["a"].milliseconds) > 0


def test_an_error_in_a_call_is_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        time_interleaved({"a": lambda: 1 // 0}, WallClock())


def test_the_floor_is_arithmetic_or_traffic():
    ceilings = Ceilings(matmul_tflops=800.0, copy_tb_s=4.0)
    assert ceilings.floor_ms(flops=8e11, moved_bytes=1e6) == pytest.approx(1.0)
    assert ceilings.floor_ms(flops=1e6, moved_bytes=8e9) == pytest.approx(2.0)


def test_ceilings_can_be_measured_anywhere():
    found = measure(torch.device("cpu"), size=32, copy_bytes=2**16, limit_s=0.2)
    assert found.matmul_tflops > 0 and found.copy_tb_s > 0


class FakeEvents:
    """Stands in for torch.cuda: a log of what was queued, and events that know their place in it."""

    def __init__(self, monkeypatch) -> None:
        self.log: list[str] = []
        queue = self

        class Event:
            def __init__(self, enable_timing: bool = False) -> None:
                assert enable_timing

            def record(self) -> None:
                queue.log.append("event")
                self.place = len(queue.log)

            def elapsed_time(self, end) -> float:
                assert queue.log[-1] == "synchronize"
                return float(end.place - self.place)

        properties = types.SimpleNamespace(L2_cache_size=100)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: self.log.append("synchronize"))


@pytest.mark.parametrize("cold_l2", [True, False])
def test_events_lie_around_the_call_and_what_prepares_it_lies_outside(cold_l2, monkeypatch):
    fake = FakeEvents(monkeypatch)
    clock = EventClock(torch.device("cpu"))
    cover = clock._cover
    assert cover.numel() == 200
    monkeypatch.setattr(type(cover), "fill_", lambda tensor, value: fake.log.append("cover"))
    for name in ("a", "b"):
        clock.start(lambda name=name: fake.log.append(name), cold_l2)
    assert clock.finish() == [2.0, 2.0]  # the call and the second event
    before = {True: ("cover", "cover"), False: ("a", "b")}[cold_l2]
    assert fake.log == [before[0], "event", "a", "event", before[1], "event", "b", "event", "synchronize"]
    assert clock.finish() == []
