# SPDX-License-Identifier: Apache-2.0
"""The parts of `aapt-fast bench frame`: what can be measured where, stages, lateness, which kernels run."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from aapt_fast.models.aapt.presets import MINI_PERSON, NANO, NANO_TEXT
from aapt_fast.ops.kernels import use_kernels
from aapt_fast.profiling import kernels, systems
from aapt_fast.profiling.inputs import random_controls
from aapt_fast.profiling.stages import INSIDE, STAGES, StepTimer, inside_generator
from aapt_fast.profiling.systems import find_system, obstacle
from aapt_fast.profiling.timing import late_by
from aapt_fast.streaming import cache as paged_cache
from aapt_fast.streaming.graph import RECORDERS
from aapt_fast.testing.recorder import record_on_cpu
from aapt_fast.testing.streams import random_model, random_session


def test_systems_have_the_size_that_is_asked_for():
    assert find_system("aapt-8b").size == (736, 416)
    large = find_system("aapt-8b", (1280, 720), 15)
    assert large.config.grid == (90, 160) and large.config.window == 15 and large.decoder == "AAPT's light one"
    assert large.prompt == 128 and find_system("nano").prompt == 0
    assert find_system("mini-person").bundled and find_system("mini-person").config == MINI_PERSON
    assert find_system("mini-anyone").bundled and find_system("mini-anyone").size == (96, 96)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("aapt-8b", (740, 416)), "resolution width: expected a positive multiple of 16 .*, got 740"),
        (("aapt-8b", (736, 420)), "resolution height: expected a positive multiple of 16 .*, got 420"),
        (("nano", (32, 0)), "resolution height: expected a positive multiple of 16 .*, got 0"),
        (("mini-person", (96, 112)), "resolution: expected 96x96, that of the bundled mini-person, got 96x112"),
        (("mini-person", None, 7), "window: expected 5, that of the bundled mini-person, got 7"),
        (("aapt-8b", None, 0), "window: expected at least 1 past frame, got 0"),
        (("aapt", None), r"preset: expected aapt-8b \| .*, got aapt"),
    ],
)
def test_systems_that_do_not_exist(arguments, message):
    with pytest.raises(ValueError, match=message):
        find_system(*arguments)


def test_a_cpu_is_not_tried_with_the_large_preset():
    cpu = torch.device("cpu")
    assert obstacle(find_system("nano"), cpu, torch.float32) is None
    assert obstacle(find_system("mini-person"), cpu, torch.float32) is None
    assert "it needs a GPU: a step is 36.9 TFLOP" in obstacle(find_system("aapt-8b"), cpu, torch.bfloat16)


def test_a_gpu_that_is_too_small_is_found_out_before_anything_is_allocated(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (30 * 2**30, 80 * 2**30))
    cuda, system = torch.device("cuda"), find_system("aapt-8b")
    why = obstacle(system, cuda, torch.bfloat16)
    assert "weights 15.5" in why and "30.0 of 80.0 are free" in why
    plan = system.memory(torch.bfloat16)
    # 36 layers x 24 heads x 128 x 2 bytes x keys and values x 64 slots of (32 frames x 19 pages + 2 of the prompt)
    assert plan.pages == 36 * 24 * 128 * 2 * 2 * 64 * (32 * 19 + 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (plan.total(), 80 * 2**30))
    assert obstacle(system, cuda, torch.bfloat16) is None


def test_without_a_gpu_cuda_is_an_obstacle(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device" in obstacle(find_system("nano"), torch.device("cuda"), torch.float32)


def test_random_models_compute_with_every_layer():
    model = systems.random_model(NANO, find_system("nano").vae, torch.device("cpu"), torch.bfloat16)
    assert all(bool(parameter.any()) for parameter in model.generator.parameters())
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_stages_of_a_step_add_up_and_change_nothing(cuda_graph, monkeypatch):
    monkeypatch.setitem(RECORDERS, "cpu", record_on_cpu)
    model = random_model(NANO)
    control = random_controls(model, 1)[0]
    session, plain = random_session(model, cuda_graph=cuda_graph), random_session(model)
    timer = StepTimer(model)
    times = [timer.step(session, control) for _ in range(2)]
    for time in times:
        assert tuple(time.stages) == STAGES and all(value >= 0 for value in time.stages.values())
        assert sum(time.stages.values()) <= time.whole and time.stages["generator"] > 0
    for _ in range(2):
        plain.step(control)
    session.step(control), plain.step(control)  # without the timer again
    assert torch.equal(session.frame, plain.frame)
    assert not model.generator._forward_hooks and not model.generator._forward_pre_hooks


def test_parts_of_the_generator_add_up_and_change_nothing():
    model = random_model(NANO_TEXT)
    session, plain = random_session(model), random_session(model)
    before = paged_cache.kv_write, paged_cache.paged_attention
    parts = inside_generator(session, None)
    plain.step()
    assert tuple(parts) == INSIDE and all(value > 0 for value in parts.values())
    assert torch.equal(session.frame, plain.frame)
    assert (paged_cache.kv_write, paged_cache.paged_attention) == before


@pytest.mark.parametrize(
    ("times", "late"),
    [
        ((10.0, 10.0, 10.0), (0, 0, 0)),
        ((5.0, 10.0, 5.0), (0, 0, 0)),
        ((15.0, 5.0, 10.0), (5, 0, 0)),
        ((25.0, 5.0, 5.0, 5.0), (15, 10, 5, 0)),
        ((12.0, 12.0, 12.0), (2, 4, 6)),
    ],
)
def test_lateness(times, late):
    assert late_by(times, 10.0) == list(late)


def test_what_runs_is_what_a_step_calls():
    session = random_session(random_model(NANO_TEXT))
    module = ModuleType("compiled")
    module.build_info = lambda: {"cuda": False, "emulated": True}
    module.philox_normal_portable = lambda seed, step, out, stream: None
    with use_kernels("all", extension=module):
        running = kernels.what_runs(session, None)
    assert running["philox_normal"] == "philox_normal/portable" and running["clean_frame"] == "torch composition"
    model = random_model(NANO)
    assert "clean_frame" not in kernels.what_runs(random_session(model), random_controls(model, 1)[0])


def test_without_kernels_compositions_run():
    session = random_session(random_model(NANO_TEXT))
    with use_kernels("none"):
        assert all("torch composition" in words for words in kernels.what_runs(session, None).values())
