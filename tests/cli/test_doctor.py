# SPDX-License-Identifier: Apache-2.0
"""The verdict of `aapt-fast doctor`, in numbers and in words."""

from __future__ import annotations

import os
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from aapt_fast.cli import doctor
from aapt_fast.cli.doctor import in_words, record_in_words, verdict
from aapt_fast.ops.kernels import use_kernels
from aapt_fast.ops.record import Found

CPU = {
    "ready": True,
    "device": "CPU",
    "dtype": "float32",
    "threads": 2,
    "video_fps": 98.4,
    "busy": 0.1,
    "mp4": True,
    "kernels": None,
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without a GPU")
@pytest.mark.filterwarnings("error::UserWarning")
def test_the_verdict_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "WARM_UP", 1)
    monkeypatch.setattr(doctor, "TIMED", 3)
    found = verdict()
    assert set(found) == set(CPU) and found["device"] == "CPU" and found["threads"] == torch.get_num_threads()
    assert found["video_fps"] > 0 and found["ready"] == (found["video_fps"] >= 23.5)


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ({}, "Ready on this CPU: mini-person makes about 98 video frames per second in float32 (real time is 24)"),
        ({"ready": False, "video_fps": 9.0}, "Slower than real time on this CPU: mini-person makes about 9 video"),
        ({"mp4": False}, "mp4: no (pip install 'aapt_fast[video]')"),
        ({"device": "NVIDIA H200", "dtype": "bfloat16"}, "Ready on this NVIDIA H200: mini-person makes about 98"),
    ],
)
def test_it_begins_with_the_verdict(changes: dict[str, Any], first: str) -> None:
    assert first in in_words({**CPU, **changes})[0]


def test_it_says_when_others_use_the_cores() -> None:
    busy = float((os.cpu_count() or 1) + 3)
    assert not any("compete" in line for line in in_words(CPU))
    assert any(f"compete for the {os.cpu_count()} cores: {busy}" in line for line in in_words({**CPU, "busy": busy}))


def test_it_advises_by_the_device() -> None:
    assert "session.frames(player, ahead=True)" in in_words(CPU)[-1]
    on_a_gpu = {**CPU, "device": "NVIDIA H200", "kernels": "there is no record: `aapt-fast verify` finds out"}
    assert in_words(on_a_gpu)[-1] == "Kernels: there is no record: `aapt-fast verify` finds out."


def compiled(**info: object) -> types.ModuleType:
    """A compiled module that knows one kernel, and says this of itself."""
    module = types.ModuleType("compiled")
    module.build_info = lambda: {"cuda": True, "emulated": False, **info}  # type: ignore[attr-defined]
    module.kv_write_portable = None  # type: ignore[attr-defined]
    return module


def test_it_says_why_a_gpu_can_run_no_kernel_and_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    assert record_in_words(torch.device("cpu")) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: 12040, raising=False)
    with use_kernels("auto", extension=compiled(cuda=False)):
        said = record_in_words(gpu)
    assert said is not None and "`AAPT_CUDA=ON pip install .`" in said
    assert said.startswith("none can run: the machine has a GPU, but the compiled module was built without CUDA; where")
    assert in_words({**CPU, "device": "Tesla T4", "kernels": said})[-1] == f"Kernels: {said}."
    with use_kernels("auto", extension=compiled(cuda_version="13.0.48")):
        said = record_in_words(gpu)
    assert said is not None and said.startswith("none can run: the driver of this GPU is for CUDA up to 12.4, and the ")
    with use_kernels("auto", extension=compiled(cuda_version="12.8.93")):
        assert record_in_words(gpu) == "this GPU or this build can run none"


def test_it_names_the_record_of_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = Found(tmp_path / "x.json", "NVIDIA H200", problem=f"the record {tmp_path / 'x.json'} is damaged")
    monkeypatch.setattr(doctor, "record_for", lambda device, selected: found)
    said = record_in_words(torch.device("cuda"))
    assert said is not None and said.startswith(f"the record {tmp_path / 'x.json'} is damaged: torch's own code runs")
