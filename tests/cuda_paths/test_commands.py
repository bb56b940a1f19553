# SPDX-License-Identifier: Apache-2.0
"""Commands on the fake GPU: each does its work there, or says in a sentence why not."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from tests.cli.models import write_nano_model

from aapt_fast.cli import checks, doctor, main
from aapt_fast.models.aapt.presets import NANO
from aapt_fast.ops import kernels, registry
from aapt_fast.profiling import frame
from aapt_fast.profiling.systems import System
from aapt_fast.testing.fake_models import aapt_model
from aapt_fast.testing.streams import SMALL_VAE


@pytest.fixture
def built_without_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A compiled module without CUDA, whatever the one of this checkout has: a CPU's torch knows no driver."""
    module = ModuleType("compiled")
    module.build_info = lambda: {"emulated": False, "cuda": False}
    module.Unsupported = type("Unsupported", (ValueError,), {})
    monkeypatch.setattr(kernels, "extension_or_none", lambda: module)
    kernels.forget_record()
    yield
    kernels.forget_record()


pytestmark = pytest.mark.usefixtures("built_without_cuda")


def test_generate(gpu, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the second GPU, in bfloat16; the first stays unopened."""
    model, out = write_nano_model(tmp_path / "model"), tmp_path / "out.gif"
    arguments = ["--model", str(model), "--device", "cuda:1", "--frames", "4", "--out", str(out), "--quiet"]
    assert main(["generate", *arguments]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["device"], report["dtype"], report["frames"]) == ("cuda:1", "bfloat16", 4)
    assert report["what_ran"]["paged_attention"] == registry.FUSED and out.stat().st_size > 0
    assert gpu.contexts == {1}


def test_a_gpu_that_is_not_there(gpu, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--device", "cuda:2", "--frames", "4", "--out", str(tmp_path / "out.gif")]
    assert main(["generate", *arguments]) == 2
    assert "--device: expected a device that this torch can use (cpu, cuda:0, cuda:1), got cuda:2" in (
        capsys.readouterr().err
    )


def test_bench_frame(gpu, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its document describes the GPU, and the stages of a step were timed by events."""
    one_layer = dataclasses.replace(NANO, layers=1)
    monkeypatch.setattr(System, "build", lambda self, device, dtype: aapt_model(one_layer, dtype, SMALL_VAE))
    monkeypatch.setattr(checks, "FEWEST_STEPS", 1)
    monkeypatch.setattr(frame, "FEWEST_STEPS", 1)
    monkeypatch.setattr(frame, "SETTLING_STEPS", 0)
    assert main(["bench", "frame", "--preset", "nano", "--window", "1", "--steps", "1", "--target", "1000"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["gpu"]["name"] == "fake GPU" and document["question"]["dtype"] == "bf16"
    assert document["memory"]["peak_of"] == "torch's allocations on the GPU" and document["memory"]["peak_bytes"] > 0
    assert document["results"][-1]["stages"]["generator"]["p50_ms"] > 0


def test_doctor(gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its trial runs on the first GPU, here with a smaller model; the build without CUDA is a fault there."""
    monkeypatch.setattr(doctor, "MODEL", str(write_nano_model(tmp_path / "model")))
    monkeypatch.setattr(doctor, "WARM_UP", 0)
    monkeypatch.setattr(doctor, "TIMED", 1)
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "on this fake GPU: " in printed and "video frames per second in bfloat16" in printed
    assert "\nKernels: none can run: " in printed and "\nWrong: the machine has a GPU" in printed
    assert "\nops      torch's fused attention (" in printed


def test_doctor_plans_for_the_memory_of_the_gpu(gpu, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--plan", "nano"]) == 0
    assert "of the 80.0 GiB that are free on this fake GPU" in capsys.readouterr().out


def test_verify_says_what_the_build_lacks(gpu, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("aapt-fast verify: this machine: expected a GPU and a build that kernels can run on, got ")
    assert said.endswith("got the machine has a GPU, but the compiled module was built without CUDA\n")
