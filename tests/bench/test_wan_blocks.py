# SPDX-License-Identifier: Apache-2.0
"""bench_wan_blocks on the CPU, with a small model: its times mean nothing here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from bench import bench_wan_blocks

from aapt_fast.profiling.schema import problems
from aapt_fast.testing import targets

CPU = torch.device("cpu")


def test_both_phases_are_in_the_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    path = tmp_path / "x.json"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["x", "--out", str(path), "--tiny", "--blocks", "10"])
    bench_wan_blocks.main()
    content = json.loads(path.read_text())
    assert problems(content) == []
    sixth, full = content["results"]
    assert sixth["name"] == "blocks/wan-tiny/48x32/fp32/sixth block" and sixth["repetitions"] == 1
    assert full["phase"] == "full" and full["repetitions"] == 2  # blocks 9 and 10; the eighth is the first that slides
    assert full["ratio"] == 1.0 and "torch compositions" in full["what_ran"] and full["weights"] == "random"
    assert "sixth block: kernels off" in capsys.readouterr().out


def test_too_few_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--out", str(tmp_path / "x.json"), "--tiny", "--blocks", "8"])
    with pytest.raises(SystemExit):
        bench_wan_blocks.main()
    assert "--blocks: expected at least 9, so that some see a full window, got 8" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


def test_the_sides_agree_with_emulated_kernels(request: pytest.FixtureRequest) -> None:
    module = targets.emulated(Path(request.config.getoption("--emulated-build"))).module
    kernels = bench_wan_blocks.wanted_kernels(module, CPU)
    assert {"kv_write/portable", "paged_attention/portable", "philox_normal/portable"} <= set(kernels)
    assert bench_wan_blocks.wanted_kernels(None, CPU) == ()
    model = bench_wan_blocks.build(bench_wan_blocks.TINY, (4, 4), CPU, torch.bfloat16)
    times, difference = bench_wan_blocks.measure(model, kernels, module, blocks=1, limit_s=60)
    assert [len(times[side]) for side in ("kernels on", "kernels off")] == [1, 1]
    assert 0 < difference < 0.05
