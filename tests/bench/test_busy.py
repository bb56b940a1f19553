# SPDX-License-Identifier: Apache-2.0
"""The bench of streams beside a busy process, with the streams left out."""

from __future__ import annotations

import subprocess

import pytest
from bench import bench_busy


def test_ways_are_compared_with_two_threads_per_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    fps = {"steps": 10.0, "steps, spinning": 20.0, "steps, one": 40.0, "ahead": 5.0}
    times = {"first_frame_s": 0.5, "p50": 1.0, "p95": 2.0, "p99": 3.0}
    monkeypatch.setattr(bench_busy, "measure_process", lambda way, frames: {"fps": fps[way], **times})
    results = bench_busy.measure(rounds=2, frames=4)
    assert len(results) == 2 * len(bench_busy.WAYS)
    for entry in results:
        way = entry["name"].rpartition("/")[2]
        assert (entry["video_fps"], entry["ratio"]) == (pytest.approx(fps[way]), pytest.approx(fps[way] / 10))
        assert entry["first_frame_s"] == 0.5 and entry["p99"] == 3.0


@pytest.mark.parametrize("ahead", [True, False])
def test_a_stream_counts_what_it_shows(ahead: bool) -> None:
    found = bench_busy.stream(12, ahead)
    assert found["fps"] > 0 and found["first_frame_s"] > 0 and found["p50"] > 0


def test_the_busy_process_ends_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def start(command: list[str]) -> subprocess.Popen:
        started.append(original(command))
        return started[-1]

    original = subprocess.Popen
    monkeypatch.setattr(bench_busy.subprocess, "Popen", start)
    with bench_busy.busy_process():
        assert started[0].poll() is None
    assert started[0].poll() is not None
