# SPDX-License-Identifier: Apache-2.0
"""`aapt-fast doctor --plan`: the memory of a session, and whether this machine has it."""

from __future__ import annotations

import json

import pytest
import torch

from aapt_fast.cli import main, plan
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.profiling.systems import System, find_system

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch):
    """Make so many bytes free, on the CPU and on a GPU with a name."""

    def pretend(count: int | None) -> None:
        monkeypatch.setattr(plan, "memory_left", lambda device: count)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")

    return pretend


def verdict(system: System, dtype: torch.dtype = torch.float32, device: torch.device = CPU) -> str:
    return plan.make_plan(system, dtype, device)["verdict"]


def test_it_is_about_the_memory_that_is_left(free):
    system = find_system("nano")
    needed = system.memory(torch.float32).total()
    free(needed)
    assert verdict(system) == f"Fits: a session of nano needs about {needed / 2**20:.1f} MiB of the " + (
        f"{needed / 2**20:.1f} MiB that are free on this CPU"
    )
    free(needed - 1)
    assert verdict(system).startswith("Does not fit: a session of nano needs about ")
    free(None)
    assert verdict(system).startswith("Unknown: ") and plan.make_plan(system, torch.float32, CPU)["fits"] is None


def test_each_remedy_is_enough(free):
    system, window = find_system("nano", window=20), 12
    free(find_system("nano", window=window).memory(torch.float32).total())
    said = verdict(system)
    half = system.memory(torch.bfloat16).total()
    assert f"what helps: --dtype bfloat16: {half / 2**20:.1f} MiB, or --window " in said
    named = int(said.rpartition(" ")[2])
    assert window - 2 <= named <= window  # attention's copies shrink as well, which is not counted on
    assert verdict(find_system("nano", window=named)).startswith("Fits")


def test_kernels_help_where_attention_is_what_does_not_fit(free, monkeypatch):
    system = find_system("nano", (32, 32), 400)
    with_kernels = system.memory(torch.bfloat16).total(kernels=True)
    free(with_kernels)
    assert "on this NVIDIA H200; what helps: kernels that `aapt-fast verify`" in verdict(system, torch.bfloat16, GPU)
    assert "verify" not in verdict(system, torch.bfloat16, CPU)


def test_the_text_stream_in_host_memory_helps_a_gpu(free):
    system, half = find_system("nano-text"), torch.bfloat16
    offloaded = system.memory(half, offload_text=True)
    free(offloaded.total())
    needs = f"{offloaded.total() / 2**20:.1f} MiB"
    advice = f"what helps: --offload-text: {needs}, and {offloaded.on_host / 2**20:.1f} MiB of host memory"
    assert advice in verdict(system, half, GPU)
    assert "--offload-text" not in verdict(system, half, CPU) + verdict(find_system("nano"), half, GPU)
    found = plan.make_plan(system, half, GPU, offload_text=True)
    assert found["verdict"].startswith(f"Fits: a session of nano-text needs about {needs} of the ")
    assert found["host_bytes"] == offloaded.on_host > 0 and "in host memory" in found["parts"]["weights"][1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--offload-text"], "--offload-text: expected --plan PRESET beside it, got none"),
        (["--offload-text", "--plan", "nano"], "--offload-text: expected a preset with a text stream, such as aapt-8b"),
        (["--offload-text", "--plan", "nano-text"], "--offload-text: expected a GPU: on a CPU all weights are in host"),
    ],
)
def test_where_no_text_stream_can_leave_the_gpu(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(plan, "usable_device", lambda device: CPU)
    assert main(["doctor", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_without_a_remedy_more_memory_is_one(free):
    free(1)
    assert verdict(find_system("nano")).endswith("a device with more memory, a smaller --resolution and --window")
    assert verdict(find_system("mini-person"), torch.bfloat16).endswith("a device with more memory")


@pytest.mark.parametrize("name", ["mini-anyone", "nano-text"])
def test_it_is_printed_and_nothing_is_loaded(name, capsys, monkeypatch):
    def load(*arguments: object, **options: object) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("aapt_fast.models.files.model_file.read_model", load)
    monkeypatch.setattr("aapt_fast.models.files.read.fill", load)
    monkeypatch.setattr(Generator, "forward", load)
    assert main(["doctor", "--plan", name, "--dtype", "bfloat16", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["preset"], found["dtype"]) == (name, "bfloat16")
    system = find_system(name)
    assert found["needed_bytes"] == system.memory(torch.bfloat16).total()
    assert found["parts"]["pages"][0] == system.memory(torch.bfloat16).pages
    assert main(["doctor", "--plan", name]) == 0
    first, second, *_ = printed = capsys.readouterr().out.splitlines()
    width, height = system.size
    assert first.startswith(f"Fits: a session of {name} needs about ") and first.endswith(".")
    assert second.startswith(f"{name} at {width}x{height}, window {system.config.window}, weights in ")
    names = [line.strip().split("  ")[0] for line in printed[2:]]
    assert names[:8] == [*found["parts"], "text encoder", "sum"]


def test_the_options_change_the_preset(capsys):
    command = ["doctor", "--plan", "nano", "--resolution", "64x32", "--window", "3", "--dtype", "float16", "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["resolution"], found["window"], found["dtype"]) == ("64x32", 3, "float16")
    assert main(["doctor", "--plan", "nano", "--resolution", "60x32"]) == 2
    assert "--resolution width: expected a positive multiple of 16" in capsys.readouterr().err
