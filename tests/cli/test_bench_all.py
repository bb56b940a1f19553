# SPDX-License-Identifier: Apache-2.0
"""`aapt-fast bench all`: one document and one table, with small systems in the place of the large ones."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from aapt_fast.cli import bench_all, main
from aapt_fast.models.vae.aapt import LIGHT
from aapt_fast.profiling import machine
from aapt_fast.profiling.decoders import decoder_layers
from aapt_fast.profiling.machine import Plan, plan
from aapt_fast.profiling.schema import problems
from aapt_fast.profiling.systems import find_system
from aapt_fast.streaming.graph import RECORDERS
from aapt_fast.testing.recorder import record_on_cpu

OPTIONS = ("bench", "all", "--device", "cpu", "--steps", "5", "--limit", "0.1")
NARROW = dataclasses.replace(LIGHT, encoder_widths=(32,) * 4, decoder_widths=(32,) * 4)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure nano and a narrow decoder at 32x32, and meet what a CPU is not tried with: the 8 B model, and 64x64."""

    def smaller(*arguments: Any, **options: Any) -> Plan:
        systems = (find_system("nano"), find_system("aapt-8b", (736, 416), 30))
        return dataclasses.replace(plan(*arguments, **options), systems=systems, decoder_sizes=((32, 32), (64, 64)))

    flops = sum(layer.flops for layer in decoder_layers(NARROW, 4, 4))
    monkeypatch.setattr(machine, "LIGHT", NARROW)
    monkeypatch.setattr(machine, "CPU_FLOPS", 2 * flops)
    monkeypatch.setattr(bench_all, "plan", smaller)


def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, *options: str) -> tuple[int, dict[str, Any], list[str]]:
    path = tmp_path / "machine.json"
    status = main([*OPTIONS, *options, "--json", str(path)])
    return status, json.loads(path.read_text()), capsys.readouterr().out.splitlines()


def test_the_plan_has_the_sizes_and_windows_of_the_paper():
    made = plan(torch.device("cpu"), torch.float32, target_s=0.16, steps=5, limit_s=1.0)
    assert [(each.preset, each.size, each.config.window) for each in made.systems[1:]] == [
        ("aapt-8b", (736, 416), 30),
        ("aapt-8b", (1280, 720), 15),
    ]
    assert made.systems[0].preset == "mini-person" and made.decoder_sizes == ((736, 416), (1280, 720))


def test_one_document_and_one_table_that_can_be_compared(small, capsys, tmp_path):
    status, document, lines = run(capsys, tmp_path, "--target", "1000")
    assert status == 2 and problems(document) == []
    assert [entry["name"] for entry in document["results"]] == [
        "frame/nano/32x32/fp32/full",
        "decoder/light/32x32/float32/torch",
    ]
    frame, decoder = document["results"]
    assert frame["geometry"] == {"width": 32, "height": 32, "window": 2, "nfe": 1} and decoder["ratio"] == 1.0
    nano, large = document["frames"]
    assert nano["verdict"]["met"] and nano["memory"]["peak_bytes"] > 0 and large["verdict"] is None
    assert large["prediction"]["devices"]["h100"]["target_ms"] == pytest.approx(59.5, abs=0.1)
    assert [failure["name"] for failure in document["failures"]] == [
        "frame/aapt-8b/736x416",
        "decoder/light/64x64/float32",
    ]
    assert len(document["scaling"]["rows"]) == 28 and "not a measurement" in document["scaling"]["label"]
    (row,) = (line for line in lines if line.startswith("frame/nano"))
    assert "target 1e+06 ms met" in row and f"{frame['p50_ms']:.2f}" in row
    assert any(line.startswith("not measured: frame/aapt-8b/736x416: it needs a GPU") for line in lines)
    assert " ".join(lines[-4].split()) == "736x416 H100 SXM 59.5 32.0 18.4 11.6 the paper on 1: 160"
    assert not any(line.startswith("{") for line in lines)
    (tmp_path / "other.json").write_text(json.dumps({**document, "torch": "another"}))
    assert main(["bench", "compare", str(tmp_path / "machine.json"), str(tmp_path / "other.json")]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("torch: ") and printed.count("within the spread") == 2


def test_a_missed_target_and_the_document_as_the_last_line(capsys, monkeypatch):
    missed = {"name": "frame/nano/32x32", "verdict": {"met": False, "target_ms": 160.0}}
    monkeypatch.setattr(bench_all, "measure_machine", lambda document, todo: document.set(frames=[missed]))
    assert main([*OPTIONS]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert problems(json.loads(last)) == []


def test_recorded_where_the_device_records(small, capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(RECORDERS, "cpu", record_on_cpu)
    _, document, _ = run(capsys, tmp_path)
    frame, *decoders = document["results"]
    assert frame["what_ran"].endswith("CUDA graphs")
    assert [entry["what_ran"] for entry in decoders] == ["torch", "torch, recorded"]


def test_a_recording_that_fails_is_noted_and_the_steps_are_launched(small, capsys, tmp_path, monkeypatch):
    def measure(system: Any, choice: Any, **options: Any) -> Any:
        if choice.cuda_graph:
            raise RuntimeError("it cannot be recorded")
        return original(system, choice, **options)

    original = machine.measure
    monkeypatch.setattr(machine, "measure", measure)
    monkeypatch.setitem(RECORDERS, "cpu", record_on_cpu)
    status, document, _ = run(capsys, tmp_path, "--target", "1000")
    assert status == 2 and document["results"][0]["what_ran"].startswith("fp32 weights, eager launches")
    assert document["failures"][0]["reason"] == "RuntimeError: it cannot be recorded"


def test_status_of_a_machine_that_measures_everything():
    met, missed = {"verdict": {"met": True}}, {"verdict": {"met": False}}
    assert bench_all.status([met, met], []) == 0
    assert bench_all.status([met, missed], ["something"]) == 1
    assert bench_all.status([met, {"verdict": None}], ["something"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--target", "0"), "--target: expected a positive number of seconds, got 0.0"),
        (("--steps", "4"), "--steps: expected at least 5, got 4"),
        (("--device", "tpu"), "--device: expected cuda or cpu, got tpu"),
    ],
)
def test_mistakes_are_named_and_leave_no_document(capsys, tmp_path, arguments, message):
    path = tmp_path / "machine.json"
    assert main([*OPTIONS, "--json", str(path), *arguments]) == 2
    assert message in capsys.readouterr().err and not path.exists()
