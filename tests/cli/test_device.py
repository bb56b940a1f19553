# SPDX-License-Identifier: Apache-2.0
"""`--device`: what is not there is named before any work."""

from __future__ import annotations

import pytest
import torch

from aapt_fast.cli import main
from aapt_fast.cli.device import chosen_dtype, usable_device


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    """As on a machine with so many GPUs, on which nothing can be put."""

    def pretend(count: int) -> None:
        def empty(*shape: int, device: torch.device) -> torch.Tensor:
            raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be")

        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch, "empty", empty)

    return pretend


def test_the_cpu_is_always_there():
    assert usable_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda", "cuda:7", "foo", "meta", "", "cpu:7"])
def test_without_a_gpu(gpus, tmp_path, capsys, name):
    gpus(0)
    assert main(["generate", "--device", name, "--out", str(tmp_path / "x.gif")]) == 2
    expected, got = "cpu, cuda or cuda:N", name or "an empty text"
    if name.startswith("cuda"):
        expected, got = "a device that this torch can use (cpu)", f"{name}, and torch finds no GPU here"
    said = f"aapt-fast generate: --device: expected {expected}, got {got}\n"
    assert capsys.readouterr().err == said and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["cuda:2", "foo", "cuda:-1", "cpu:7"])
def test_with_two_gpus(gpus, name):
    gpus(2)
    with pytest.raises(ValueError, match=rf"--device: .* \(cpu, cuda:0, cuda:1\), got {name}"):
        usable_device(name)


def test_a_gpu_that_does_not_work(gpus):
    gpus(1)
    with pytest.raises(
        ValueError, match=r"--device: expected a device that works, got cuda: CUDA error: out of memory$"
    ):
        usable_device("cuda")


@pytest.mark.parametrize("name", ["cuda:7", "foo"])
def test_of_the_benchmark(capsys, name):
    assert main(["bench", "frame", "--preset", "nano", "--device", name]) == 2
    printed = capsys.readouterr()
    assert printed.err == f"aapt-fast bench: --device: expected cuda or cpu, got {name}\n" and printed.out == ""


def test_the_dtype_without_an_option_is_that_of_the_device(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chosen_dtype(None, gpu) == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert (chosen_dtype(None, cpu), chosen_dtype(None, gpu)) == (torch.float32, torch.float32)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert (chosen_dtype(None, gpu), chosen_dtype("float16", gpu)) == (torch.bfloat16, torch.float16)
