# SPDX-License-Identifier: Apache-2.0
"""`aapt-fast bench frame` as a user types it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from aapt_fast.cli import bench_frame, main
from aapt_fast.models.files.placement import fast_dtype
from aapt_fast.profiling.frame import Measured, verdict
from aapt_fast.profiling.schema import problems
from aapt_fast.profiling.stages import StepTime
from aapt_fast.streaming.graph import RECORDERS
from aapt_fast.testing.recorder import record_on_cpu

NANO = ("--preset", "nano", "--device", "cpu", "--steps", "5")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict, str]:
    """Status, the document of the last line, and what stands above it."""
    status = main(["bench", "frame", *arguments])
    *above, last = capsys.readouterr().out.splitlines()
    return status, json.loads(last), "\n".join(above)


def test_a_target_that_is_met(capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (99.0, 99.0, 99.0))
    path = tmp_path / "frame.json"
    status, document, above = run(capsys, *NANO, "--target", "1000", "--json", str(path))
    assert status == 0 and "target 1e+06 ms met" in above
    assert f"other processes compete for the {os.cpu_count()} cores: 99.0 of them ran or waited" in above
    assert json.loads(path.read_text()) == document and problems(document) == []
    assert document["prediction"] is None and document["failures"] == []
    assert [entry["phase"] for entry in document["results"]] == ["cold", "filling", "full"]
    cold, filling, full = document["results"]
    assert full["name"] == "frame/nano/32x32/fp32/full"
    assert (cold["repetitions"], filling["repetitions"], full["repetitions"]) == (1, 3, 5)  # the window is 2
    for entry in document["results"]:
        assert set(entry["stages"]) == {"condition", "generator", "decode", "to host"}
        assert entry["stages"]["generator"]["p50_ms"] > 0 and entry["p99_ms"] >= entry["stages"]["decode"]["p50_ms"]
    assert full["tflops"] > 0 and full["what_ran"].startswith("fp32 weights, eager launches")
    assert "torch composition" in document["what_ran"]["paged_attention"]
    verdict = document["verdict"]
    assert verdict["met"] and verdict["judged_ms"] == full["p95_ms"] and verdict["target_ms"] == 1e6
    assert verdict["jitter_ms"] == pytest.approx(full["p99_ms"] - full["p50_ms"])
    assert verdict["last_to_first"] > 0 and 0 <= verdict["outside_share"] < 1
    assert "last 2 of 5 steps" in verdict["last_to_first_is"] and "outside of its stages" in above
    assert verdict["at_this_pace"]["late_steps"] == 0 and verdict["at_this_pace"]["steps"] == 5
    assert document["memory"]["peak_bytes"] > document["memory"]["expected_weights_bytes"] > 0
    assert document["start"]["all_s"] > document["start"]["session_s"] > 0
    since = document["start"]["since_process_start_s"]
    assert since is None or since > document["start"]["all_s"]
    inside = full["inside_generator"]
    assert set(inside) == {"keys and values", "attention", "rest"} and cold["inside_generator"] is None
    assert all(part["p50_ms"] > 0 for part in inside.values()) and "inside the generator" in above
    assert document["question"]["window"] == 2 and document["doctor"]["torch"]["version"] == torch.__version__


def test_steps_that_get_slower_and_what_no_stage_has():
    steps = [StepTime(whole, {"generator": whole / 2, "decode": whole / 4}) for whole in (10, 10, 30, 20, 20, 20)]
    found = verdict(Measured({"full": steps}, [], {}, {}, {}), 0.025)
    assert found["last_to_first"] == 2.0 and found["outside_share"] == 0.25
    assert found["jitter_ms"] == 10.0 and not found["met"]


def test_a_target_that_is_missed(capsys):
    status, document, above = run(capsys, *NANO, "--target", "1e-9")
    assert status == 1 and "missed" in above
    assert not document["verdict"]["met"] and document["verdict"]["at_this_pace"]["late_share"] == 1.0


@pytest.mark.skipif(
    fast_dtype(torch.device("cpu")) is torch.float32, reason="this CPU emulates bfloat16: 40 seconds for what takes one"
)
def test_the_other_paths_can_be_measured(capsys):
    options = ("--dtype", "bfloat16", "--resolution", "64x32", "--window", "1")
    status, document, _ = run(capsys, *NANO, *options, "--target", "1000")
    full = document["results"][-1]
    assert status == 0 and full["name"] == "frame/nano/64x32/bf16/full"
    assert full["what_ran"].startswith("bf16 weights, eager")
    assert document["results"][1]["repetitions"] == 2


def test_with_recorded_steps(capsys, monkeypatch):
    monkeypatch.setitem(RECORDERS, "cpu", record_on_cpu)
    status, document, _ = run(capsys, *NANO, "--cuda-graph", "--target", "1000")
    full = document["results"][-1]
    assert status == 0 and full["what_ran"].endswith("fp32 weights, CUDA graphs") and problems(document) == []
    assert "torch composition" in document["what_ran"]["paged_attention"]
    assert full["stages"]["generator"]["p50_ms"] > 0


def test_a_machine_that_cannot_run_it_gets_a_prediction(capsys, tmp_path):
    path = tmp_path / "frame.json"
    options = ("--preset", "aapt-8b", "--resolution", "736x416", "--target", "0.16", "--device", "cpu")
    status, document, above = run(capsys, *options, "--json", str(path))
    assert status == 2 and problems(document) == [] and json.loads(path.read_text()) == document
    assert "aapt-8b cannot run here: it needs a GPU" in above and "prediction" in above
    assert "9.8 + 20.2 TFLOP" in above
    assert document["results"] == [] and document["verdict"] is None
    assert "it needs a GPU" in document["failures"][0]["reason"]
    found = document["prediction"]
    assert found["label"] == "prediction of a roofline, not a measurement"
    assert found["work"]["linear_tflop"] == pytest.approx(9.753, abs=0.001)
    assert found["work"]["attention_tflop"] == pytest.approx(20.249, abs=0.001)
    assert found["devices"]["h100"]["would_meet"] and found["devices"]["h100"]["floor_ms"] < 52
    assert [(row["resolution"], row["gpus"]) for row in found["paper"]] == [("736x416", 1), ("1280x720", 8)]


def test_at_another_resolution_and_window(capsys):
    options = ("--preset", "aapt-8b", "--resolution", "1280x720", "--window", "15", "--device", "cpu")
    status, document, _ = run(capsys, *options)
    work = document["prediction"]["work"]
    assert status == 2 and work["keys"] == 61200
    assert work["linear_tflop"] + work["attention_tflop"] == pytest.approx(126.8, abs=0.05)


def test_cuda_that_is_not_there(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, document, _ = run(capsys, "--preset", "nano", "--device", "cuda")
    assert status == 2 and "no CUDA device" in document["failures"][0]["reason"]
    assert "paper" not in document["prediction"]


def test_running_out_of_memory_in_the_middle_is_no_crash(capsys, monkeypatch):
    def measure(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried")

    monkeypatch.setattr(bench_frame, "measure", measure)
    status, document, _ = run(capsys, *NANO)
    assert status == 2 and document["failures"][0]["reason"] == "out of memory: CUDA out of memory. Tried"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--resolution", "40x32"), "--resolution width: expected a positive multiple of 16"),
        (("--resolution", "736"), "--resolution: expected WIDTHxHEIGHT like 736x416, got 736"),
        (("--cuda-graph",), "--cuda-graph: expected a GPU: steps on a cpu are not recorded, got the device cpu"),
        (("--target", "0"), "--target: expected a positive number of seconds, got 0.0"),
        (("--steps", "4"), "--steps: expected at least 5, got 4"),
        (("--preset", "nope"), "--preset: expected"),
        (("--window", "0"), "--window: expected at least 1 past frame, got 0"),
        (("--limit", "0"), "--limit: expected a positive number of seconds, got 0.0"),
    ],
)
def test_mistakes_are_named_and_leave_no_document(capsys, tmp_path, arguments, message):
    path = tmp_path / "frame.json"
    assert main(["bench", "frame", *NANO, "--json", str(path), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err and not path.exists()
