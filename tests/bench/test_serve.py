# SPDX-License-Identifier: Apache-2.0
"""The bench of the server, with a worker that takes a step without computing anything."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading

from bench import bench_serve
from tests.serve.conftest import Running

from aapt_fast.serve.settings import Settings


def test_players_count_what_they_see(monkeypatch):
    monkeypatch.setattr(bench_serve, "BETWEEN_CONTROLS", 0.05)
    monkeypatch.setattr(bench_serve, "WARM_UP", 0.1)
    running, over = Running(Settings(drain_seconds=0.2)), threading.Event()

    def take_steps() -> None:
        while not over.wait(0.01):
            for key in running.keys:
                with contextlib.suppress(KeyError):  # it was closed meanwhile
                    running.worker.take_step(key)

    stepping = threading.Thread(target=take_steps)
    stepping.start()
    two = asyncio.run(bench_serve.play_together(running.url, 1.5, 2, idle=1))
    over.set()
    stepping.join()
    running.stop()
    for played in two:
        found = bench_serve.entry("two", played, more=1)
        assert found["step_ms"] == 5.0 and found["encode_ms"] == 0.5 and found["more"] == 1
        assert found["video_fps"] > 24 and found["p50_ms"] > 0
    assert bench_serve.memory_mb(os.getpid())[0] > 10
