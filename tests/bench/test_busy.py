# SPDX-License-Identifier: Apache-2.0
"""The bench of streams beside a busy process, with the streams left out."""

from __future__ import annotations

import subprocess

import pytest
from bench import bench_busy


def test_ways_are_compared_with_the_spinning_one(monkeypatch: pytest.MonkeyPatch) -> None:
    fps = {"spinning": 10.0, "aapt-fast": 20.0, "sleeping": 40.0, "one thread": 5.0}
    monkeypatch.setattr(bench_busy, "video_fps", lambda way, frames: fps[way])
    results = bench_busy.measure(rounds=2, frames=4)
    assert len(results) == 2 * len(bench_busy.WAYS)
    for entry in results:
        way = entry["name"].rpartition("/")[2]
        assert (entry["video_fps"], entry["ratio"]) == (pytest.approx(fps[way]), pytest.approx(fps[way] / 10))


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
