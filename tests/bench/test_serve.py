# SPDX-License-Identifier: Apache-2.0
"""The bench of the server, with a nano model on which its times mean nothing."""

from __future__ import annotations

import asyncio
import os

from bench import bench_serve
from bench.bench_serve import Played
from tests.cli.models import write_nano_model


def test_a_player_counts_what_it_sees(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_serve, "BETWEEN_CONTROLS", 0.1)
    monkeypatch.setattr(bench_serve, "WARM_UP", 0.2)
    monkeypatch.setattr(bench_serve, "play", of_the_only_picture(bench_serve.play))
    with bench_serve.server("--model", str(write_nano_model(tmp_path / "model"))) as (process, address):
        two = asyncio.run(bench_serve.play_together(address, 2.0, 2, idle=1))
        assert all(each > 10 for each in bench_serve.memory_mb(process.pid))
    assert process.returncode == 0 and not os.path.exists(f"/proc/{process.pid}")
    for played in two:
        found = bench_serve.entry("two", played, more=1)
        assert found["video_fps"] > 0 and found["p50_ms"] > 0 and found["encode_ms"] > 0 and found["more"] == 1


def of_the_only_picture(play):
    """The nano model's gallery has one picture."""

    async def played(address: str, seconds: float, number: int) -> Played:
        return await play(address, seconds, 0)

    return played
