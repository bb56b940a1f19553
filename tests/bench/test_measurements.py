# SPDX-License-Identifier: Apache-2.0
"""measure_ceilings and bench_frame as programs, on the CPU with tiny shapes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from bench import bench_frame, measure_ceilings
from bench.harness.document import Document, problems
from bench.measure_ceilings import hardware, verdict

from aapt_fast.models.aapt.config import GeneratorConfig
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.presets import AAPT_8B
from aapt_fast.models.vae.wan import WanVAEConfig
from aapt_fast.ops.kernels import KERNELS
from aapt_fast.profiling.compiled import CompiledSampler
from aapt_fast.profiling.kernels import MISSING
from aapt_fast.profiling.roofline import Step
from aapt_fast.profiling.systems import default_dtype
from aapt_fast.streaming import graph
from aapt_fast.testing import targets
from aapt_fast.testing.recorder import record_on_cpu

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (660, "within 20 %"),
        (512, "within 20 %"),
        (816, "within 20 %"),
        (511, "20% below"),
        (320, "50% below"),
        (1360, "100% above"),
    ],
)
def test_verdicts_are_about_20_per_cent_around_the_range(value, words):
    assert words in verdict(value, (640, 680))


def program(module: str, *arguments: str) -> subprocess.CompletedProcess:
    variables = {**os.environ, "OMP_WAIT_POLICY": "passive", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=variables, timeout=200)


@pytest.mark.parametrize(
    "module", ["bench.measure_ceilings", "bench.bench_frame", "bench.bench_wan_blocks", "bench.kernels"]
)
def test_without_a_gpu_the_programs_say_so(module, tmp_path):
    ended = program(module, "--out", str(tmp_path / "x.json"))
    assert ended.returncode == 3 and ended.stdout.startswith("no GPU: ")
    assert not (tmp_path / "x.json").exists()


def test_every_measurement_gives_a_number_or_a_reason(tmp_path):
    path = tmp_path / "x.json"
    only = [word for number in (0, 1, 2, 3, 4, 6, 7) for word in ("--only", str(number))]
    ended = program("bench.measure_ceilings", "--out", str(path), "--tiny", *only)
    assert ended.returncode == 0, ended.stderr
    content = json.loads(path.read_text())
    assert problems(content) == []
    assert content["ceilings"]["matmul_tflops"] > 0
    done = {entry["name"][0] for entry in content["measurements"] + content["failures"]}
    assert done == set("123467")
    assert {"2", "3", "4"} <= {entry["name"][0] for entry in content["measurements"]}


@pytest.mark.parametrize("function", [measure_ceilings.decoder_eager, measure_ceilings.decoder_compiled])
def test_a_step_of_the_decoder(function, monkeypatch):
    monkeypatch.setattr(measure_ceilings, "time_interleaved", few(measure_ceilings.time_interleaved))
    failures = []
    arguments = [torch.device("cpu"), WanVAEConfig(base_dim=4), (2, 2)]
    if function is measure_ceilings.decoder_eager:
        arguments.append(lambda *failure: failures.append(failure))
    found = list(function(*arguments))
    assert found[0]["what_ran"].startswith("aapt_fast") and found[0]["value"] > 0
    assert len(found) + len(failures) == (2 if function is measure_ceilings.decoder_eager else 1)


def few(function):
    return lambda calls, clock, **options: function(calls, clock, **{**options, "repetitions": 2, "limit_s": 0.0})


@pytest.mark.parametrize("returned", [5.5, {"value": 5.5}, [{"value": 5.5}]])
def test_hardware_measurements_are_taken_as_they_come(returned, monkeypatch):
    module = types.ModuleType("bench.measure_hardware")
    module.l2_bandwidth = lambda: returned
    module.__spec__ = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "bench.measure_hardware", module)
    (entry,) = hardware(1)
    assert entry["name"] == "1/l2_bandwidth" and entry["value"] == 5.5 and entry["verdict"] == ""


def test_hardware_measurements_that_are_not_there(monkeypatch):
    monkeypatch.setattr(measure_ceilings.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"not built: .* shifted_descriptors"):
        list(hardware(6))


@pytest.fixture
def document(tmp_path):
    document = Document.create(tmp_path / "results.json", "pytest")
    document.set("ceilings", {"matmul_tflops": 1.0, "copy_tb_s": 1.0})
    return document


@pytest.mark.parametrize("preset", ["nano", "nano-text"])
def test_a_frame_of_a_small_preset(preset, document):
    bench_frame.frame(
        document, preset, torch.device("cpu"), steps=5, limit_s=0.0, vae=WanVAEConfig(base_dim=4), module=None
    )
    (result,) = document.content["results"]
    assert problems(document.content) == []
    assert result["name"].startswith(f"frame/{preset}/") and "kernels off" in result["what_ran"]
    assert result["video_fps"] == pytest.approx(4e3 / result["p50_ms"])
    assert {entry["what_ran"]: entry["reason"] for entry in document.content["failures"]} == dict.fromkeys(
        KERNELS, MISSING
    )


WIDE_HEADS = GeneratorConfig(width=128, heads=2, layers=1, grid=(4, 4), window=2)


def test_both_sides_show_nearly_the_same_and_are_compared(document, monkeypatch, request):
    module = targets.emulated(Path(request.config.getoption("--emulated-build"))).module
    monkeypatch.setattr(bench_frame, "KERNELS", ("paged_attention/portable", "missing/one"))
    monkeypatch.setattr(bench_frame, "generator_preset", lambda name: WIDE_HEADS)
    options = {"steps": 5, "limit_s": 0.0, "vae": WanVAEConfig(base_dim=4), "module": module}
    bench_frame.frame(document, "wide heads", torch.device("cpu"), dtype=torch.bfloat16, **options)
    assert [(f["what_ran"], f["reason"]) for f in document.content["failures"]] == [
        ("missing/one", "the compiled module does not have it")
    ]
    on, off = document.content["results"]
    assert "kernels on: paged_attention/portable" in on["what_ran"] and "kernels off" in off["what_ran"]
    assert on["ours"] and not off["ours"] and off["ratio"] == 1.0
    assert 0 < on["largest_pixel_difference_from_baseline"] < 16 and off["largest_pixel_difference_from_baseline"] == 0


def test_a_recorded_session_is_a_third_side(document, monkeypatch, request):
    module = targets.emulated(Path(request.config.getoption("--emulated-build"))).module
    monkeypatch.setattr(bench_frame, "KERNELS", ("paged_attention/portable",))
    monkeypatch.setattr(bench_frame, "generator_preset", lambda name: WIDE_HEADS)
    monkeypatch.setitem(graph.RECORDERS, "cpu", record_on_cpu)
    options = {"steps": 5, "limit_s": 0.0, "vae": WanVAEConfig(base_dim=4), "module": module}
    bench_frame.frame(document, "wide heads", torch.device("cpu"), dtype=torch.bfloat16, **options)
    on, _, recorded = document.content["results"]
    assert recorded["what_ran"] == "CUDA graphs; kernels on, recorded: paged_attention/portable"
    assert recorded["ours"] and recorded["ratio"] > 0
    names = [result["largest_pixel_difference_from_baseline"] for result in (on, recorded)]
    assert names[0] == names[1] > 0 and problems(document.content) == []


def test_a_step_that_cannot_be_recorded_is_a_failure_beside_the_results(document, monkeypatch):
    def recorder(function, device):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setitem(graph.RECORDERS, "cpu", recorder)
    bench_frame.frame(document, "nano", torch.device("cpu"), steps=5, limit_s=0.0, vae=WanVAEConfig(base_dim=4))
    assert len(document.content["results"]) == 1
    failure = document.content["failures"][-1]
    assert failure["what_ran"] == "kernels on, recorded" and "when stream is capturing" in failure["reason"]


def test_plain_torch_compiled_is_a_fourth_side(document, monkeypatch):
    monkeypatch.setattr(CompiledSampler.__init__, "__defaults__", (lambda function, mode: function,))
    options = {"steps": 5, "limit_s": 0.0, "vae": WanVAEConfig(base_dim=4), "compiled": True}
    bench_frame.frame(document, "nano-text", torch.device("cpu"), **options)
    off, compiled = document.content["results"]
    assert compiled["what_ran"] == "compiled by torch; torch.compile, contiguous keys: torch compositions"
    assert not compiled["ours"] and compiled["largest_pixel_difference_from_baseline"] <= 1
    assert off["ratio"] == 1.0 and problems(document.content) == []


def test_a_kernel_that_refuses_is_left_out(document, monkeypatch, request):
    module = targets.emulated(Path(request.config.getoption("--emulated-build"))).module
    options = {"steps": 5, "limit_s": 0.0, "vae": WanVAEConfig(base_dim=4), "module": module}
    monkeypatch.setattr(bench_frame, "KERNELS", ("paged_attention/portable",))
    bench_frame.frame(document, "nano", torch.device("cpu"), **options)  # heads of 16, float32
    (failure,) = document.content["failures"]
    assert failure["what_ran"] == "paged_attention/portable" and "does not do these arguments" in failure["reason"]
    assert len(document.content["results"]) == 1


def test_mini_person_streams_with_its_real_time_factor(document):
    bench_frame.mini_person(document, torch.device("cpu"), steps=5, limit_s=0.0)
    (result,) = document.content["results"]
    assert result["name"] == "frame/mini-person/96x96/fp32"
    assert result["real_time"] == pytest.approx(result["video_fps"] / 24)


def test_work_of_the_large_preset():
    """30.1 TFLOP per latent frame at 736x416 with 32 frames in sight, as published for the paper's configuration."""
    step = Step(AAPT_8B, 128, ())
    assert step.keys == 38272
    assert step.generator_flops == pytest.approx(30.1e12, rel=0.01)


def test_the_large_preset_can_be_built_on_a_device():
    with torch.device("meta"), default_dtype(torch.bfloat16):
        generator = Generator(AAPT_8B)
    assert {parameter.dtype for parameter in generator.parameters()} == {torch.bfloat16}
    assert {parameter.device.type for parameter in generator.parameters()} == {"meta"}
