# SPDX-License-Identifier: Apache-2.0
"""bench_together and bench_host_frames on the CPU: their times mean nothing here."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from bench import bench_host_frames, bench_together

from aapt_fast.profiling.schema import problems
from aapt_fast.streaming.graph import RECORDERS
from aapt_fast.testing.recorder import record_on_cpu


@pytest.mark.parametrize("recorder", [False, True], ids=["", "with a recorder"])
def test_sessions_together_make_the_frames_that_they_make_one_by_one(monkeypatch, recorder):
    if recorder:
        monkeypatch.setitem(RECORDERS, "cpu", record_on_cpu)
    results = bench_together.measure(2, "float32", 3, "cpu", warm_up=1)
    names = [result["name"].split("/")[-1] for result in results]
    assert names == ["together", *(["recorded"] if recorder else []), "one by one"]
    for result in results:
        assert result["largest_pixel_difference"] <= 1 and result["repetitions"] == 3
        assert result["ratio"] > 0 and result["baseline"] == "one by one"


def test_three_ways_to_the_host(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["x", "--preset", "nano", "--steps", "3"])
    bench_host_frames.main()
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert problems(document) == []
    assert [result["name"].split("/")[-1] for result in document["results"]] == ["at once", "pinned", "overlapped"]
    assert all(result["repetitions"] == 3 and result["ratio"] > 0 for result in document["results"])
    assert document["results"][0]["ratio"] == 1.0 and document["results"][0]["bytes"] == 4 * 32 * 32 * 3


def test_the_large_preset_wants_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(SystemExit) as ended:
        bench_host_frames.main()
    assert ended.value.code == 3 and capsys.readouterr().out.startswith("no GPU: ")
