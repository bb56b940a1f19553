# SPDX-License-Identifier: Apache-2.0
"""The verdict of `aapt-fast doctor`, in numbers and in words."""

from __future__ import annotations

import ctypes
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

import aapt_fast
from aapt_fast.cli import doctor, doctor_installation, main
from aapt_fast.cli.checks import parse_size
from aapt_fast.cli.choices import planned_names
from aapt_fast.cli.doctor import examine, verdict, verified_by
from aapt_fast.cli.doctor_installation import (
    commit_of,
    gpu_fault,
    installations,
    other_version,
    record_in_words,
    several_builds,
    torch_without_cuda,
)
from aapt_fast.cli.doctor_memory import memory_needed
from aapt_fast.cli.doctor_text import in_words, screen
from aapt_fast.cli.plan import make_plan
from aapt_fast.ops.kernels import KERNELS, use_kernels
from aapt_fast.ops.record import Found, Identity, Record, Verified
from aapt_fast.profiling.systems import find_system

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
        said = record_in_words(gpu)
    assert said is not None and said.startswith(
        "none can run: they need a GPU of compute capability 8.0 or newer, and "
    )


def test_it_names_the_record_of_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = Found(tmp_path / "x.json", "NVIDIA H200", problem=f"the record {tmp_path / 'x.json'} is damaged")
    monkeypatch.setattr(doctor_installation, "record_for", lambda device, selected: found)
    said = record_in_words(torch.device("cuda"))
    assert said is not None and said.startswith(f"the record {tmp_path / 'x.json'} is damaged: torch's own code runs")


# ---- faults ----


def test_several_builds_in_one_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        (folder / "aapt_fast-0.1.0.dist-info").mkdir(parents=True)
        (folder / "aapt_fast-0.1.0.dist-info" / "METADATA").write_text("Name: aapt_fast\nVersion: 0.1.0\n")
    monkeypatch.setattr(sys, "path", list(map(str, folders)))
    assert installations() == list(map(str, folders))
    said = several_builds(installations())
    assert said is not None and said.startswith(
        f"2 builds of aapt_fast are installed, in {folders[0]} and {folders[1]}"
    )
    assert "`pip uninstall --yes aapt_fast`" in said
    assert several_builds(installations()[:1]) is None


def test_a_module_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    module = compiled()
    module.__version__ = aapt_fast.__version__  # type: ignore[attr-defined]
    assert other_version(module) is None
    module.__version__ = "0.0.9"  # type: ignore[attr-defined]
    said = other_version(module)
    assert said is not None and said.startswith("the compiled module is of version 0.0.9 and the package of ")
    assert "`pip install --force-reinstall --no-deps`" in said
    monkeypatch.setattr(aapt_fast, "__version__", "0+source", raising=False)
    assert other_version(module) is None  # a source tree has no version to compare


def test_torch_without_cuda_beside_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    said = torch_without_cuda(driver=True)
    assert said is not None and "was built without CUDA: `pip install --force-reinstall torch`" in said
    assert torch_without_cuda(driver=False) is None
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert torch_without_cuda(driver=True) is None


def test_a_build_that_a_gpu_cannot_use_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: 12040, raising=False)
    for build, begins, ends in (
        (
            compiled(cuda=False),
            "the machine has a GPU, but the compiled module was built without CUDA: where nvcc",
            "CUDA",
        ),
        (
            compiled(cuda_version="13.0.48"),
            "the driver of this GPU is for CUDA up to 12.4",
            "install a newer driver, or ",
        ),
    ):
        with use_kernels("auto", extension=build):
            said = gpu_fault(build, gpu)
            assert said is not None and said.startswith(begins) and ends in said
            assert gpu_fault(build, torch.device("cpu")) is None


@pytest.mark.parametrize("as_json", [True, False])
def test_a_module_for_another_glibc_is_the_verdict(
    as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise RuntimeError(
            "aapt_fast._C: expected a module built for this machine, got GLIBC_9.9 not found. Rebuild it"
        )

    for module in (doctor, doctor_installation):
        monkeypatch.setattr(module, "extension_or_none", fail)
    assert main(["doctor", *(["--json"] if as_json else [])]) == 1
    out = capsys.readouterr().out
    if as_json:
        report = json.loads(out)
        assert report["verdict"]["ready"] is False and report["faults"] == [report["verdict"]["why"]]
    assert "got GLIBC_9.9 not found. Rebuild it" in out


# ---- facts ----


def test_it_says_what_verified_an_implementation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert verified_by("kv_write", cpu) == "the tests of the package compare it with each op's reference"
    monkeypatch.setattr(doctor, "running_kernel", lambda op, device: "kv_write/portable")
    identity = Identity("NVIDIA H200", "9.0", "580.1", "abc")
    record = Record(identity, {"kv_write/portable": Verified(None, {"x": 1.5})}, "2.13", "2026-12-01")
    monkeypatch.setattr(doctor, "record_for", lambda device, selected: Found(tmp_path, "NVIDIA H200", record))
    assert verified_by("kv_write", gpu) == "`aapt-fast verify` on this NVIDIA H200, 2026-12-01"
    monkeypatch.setattr(doctor, "record_for", lambda device, selected: Found(tmp_path, "NVIDIA H200", problem="none"))
    with use_kernels("all"):
        assert verified_by("kv_write", gpu) == "nothing: the choice all runs it all the same"


def test_the_commit_lies_beside_the_module(tmp_path: Path) -> None:
    module = types.ModuleType("compiled")
    module.__file__ = str(tmp_path / "_C.so")
    assert commit_of(module) == "unknown"
    (tmp_path / "commit.txt").write_text("0123456789ab\n")
    assert commit_of(module) == "0123456789ab"


def test_memory_is_that_of_the_plan() -> None:
    cpu = torch.device("cpu")
    found = memory_needed(cpu, torch.bfloat16)
    by_name = {(each["preset"], each["resolution"]): each for each in found["sessions"]}
    assert {preset for preset, _ in by_name} == set(planned_names())
    for resolution in ("736x416", "1280x720"):
        planned = make_plan(find_system("aapt-8b", parse_size(resolution)), torch.bfloat16, cpu)
        assert by_name["aapt-8b", resolution]["needed_bytes"] == planned["needed_bytes"]
    assert by_name["nano", "32x32"]["fits"] is True


def test_it_fits_one_screen() -> None:
    """On a machine with every kind of line: eight GPUs, a kernel per op, each for a reason of its own, and faults."""
    ops = {op: kernel.name for op, kernel in ((kernel.op, kernel) for kernel in KERNELS.values())}
    report = {
        "verdict": {**CPU, "device": "NVIDIA H200", "kernels": "a record " * 20},
        "faults": ["2 builds of aapt_fast are installed " * 4],
        **examine(),
        "gpu": [{"name": "NVIDIA H200", "capability": "9.0"}] * 8,
        "ops": ops,
        "verified_by": dict.fromkeys(ops, "`aapt-fast verify` on this NVIDIA H200, 2026-12-01T00:00:00+00:00"),
        "memory": memory_needed(torch.device("cpu"), torch.bfloat16),
    }
    lines = screen(report).splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 120
    assert all(any(name in line for line in lines) for name in (*ops, "aapt-8b", "NVIDIA", "Wrong: 2 builds"))


@pytest.mark.parametrize(
    ("loaded", "said"),
    [(22809, "2.28.9 (torch was built with 2.27.5)"), (22705, "2.27.5"), (None, "2.27.5")],
)
def test_both_versions_of_nccl(loaded: int | None, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library that pip brought may be newer than the one that torch was built with."""

    class Library:
        def __init__(self, name: str, mode: int) -> None:
            if loaded is None or not mode & os.RTLD_NOLOAD:
                raise OSError(f"{name}: cannot open shared object file")

        def ncclGetVersion(self, number: Any) -> int:
            number._obj.value = loaded
            return 0

    monkeypatch.setattr(ctypes, "CDLL", Library)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 27, 5))
    assert doctor_installation.nccl_version() == said
