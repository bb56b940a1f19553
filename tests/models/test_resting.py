# SPDX-License-Identifier: Apache-2.0
"""Weights that rest on the host: the same results, no GPU memory between two prompts, and no harm between threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import Tensor
from torch.testing._internal.two_tensor import TwoTensor

from aapt_fast import StreamSession
from aapt_fast.models.aapt import generator as aapt
from aapt_fast.models.aapt.config import GeneratorConfig
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.presets import NANO, NANO_TEXT
from aapt_fast.models.resting import copied, rest_on_host
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.mini import MiniVAE
from aapt_fast.models.wan import layers, transformer
from aapt_fast.models.wan.config import WanConfig
from aapt_fast.profiling.inputs import random_image, random_prompt
from aapt_fast.profiling.memory import plan_memory, weight_bytes
from aapt_fast.testing.fake_cuda import FAKE_GPU, fake_cuda, on_fake_gpu
from aapt_fast.testing.fake_models import on_meta
from aapt_fast.testing.streams import SMALL_VAE, random_model, random_session
from aapt_fast.testing.wan import TINY, random_wan

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with a GPU has no fake one")


@pytest.fixture
def visits(monkeypatch: pytest.MonkeyPatch) -> list[torch.nn.Module]:
    """Modules that visited: every one is copied, as if the weights were on another device than the model."""
    modules: list[torch.nn.Module] = []

    def visiting(module: torch.nn.Module, device: torch.device) -> torch.nn.Module:
        modules.append(module)
        return copied(module, device)

    for user in (aapt, layers, transformer):
        monkeypatch.setattr(user, "visiting", visiting)
    return modules


def wan_model() -> StreamModel:
    return StreamModel(random_wan(TINY), MiniVAE(SMALL_VAE), grid=(4, 6))


def two_prompts(model: StreamModel, barrier: Barrier | None = None) -> Tensor:
    """Video [F, H, W, 3] of two runs of one session under different prompts."""
    if barrier is not None:
        barrier.wait(60)
    with random_session(model) as session:
        first = session.step()
        session.reset(prompt=random_prompt(model, 3, seed=9))
        return torch.cat([first, session.step()])


@pytest.mark.parametrize("make", [lambda: random_model(NANO_TEXT), wan_model], ids=["aapt", "wan"])
def test_a_copy_gives_the_same_video_also_in_two_threads_at_once(make: Callable[[], StreamModel], visits, monkeypatch):
    model = make()
    with monkeypatch.context() as context:
        for user in (aapt, layers, transformer):
            context.setattr(user, "visiting", lambda module, device: module)
        expected = two_prompts(model)
    weights = [id(weight) for weight in model.generator.parameters()]
    barrier = Barrier(2)
    with ThreadPoolExecutor(2) as threads:
        videos = [future.result(120) for future in [threads.submit(two_prompts, model, barrier) for _ in range(2)]]
    assert all(torch.equal(video, expected) for video in videos)
    assert [id(weight) for weight in model.generator.parameters()] == weights
    assert {id(module) for module in visits} == {id(module) for module in model.generator.text_modules}


def test_gradients_flow_back_and_shared_weights_stay_shared():
    layer = torch.nn.Linear(3, 3, bias=False)
    tied = torch.nn.Sequential(layer, torch.nn.ReLU(), layer)
    copy = copied(tied, torch.device("cpu"))
    assert copy[0] is not layer and copy[0].weight is copy[2].weight
    copy(torch.ones(2, 3)).sum().backward()
    grad, layer.weight.grad = layer.weight.grad, None
    tied(torch.ones(2, 3)).sum().backward()
    assert grad is not None and torch.equal(grad, layer.weight.grad)


def test_a_weight_of_several_parts_keeps_them():
    layer = torch.nn.Linear(3, 3, bias=False)
    layer.weight = torch.nn.Parameter(TwoTensor(torch.ones(3, 3), torch.zeros(3, 3)))
    rest_on_host([layer])
    visitor = copied(layer, torch.device("cpu"))
    for weight in (layer.weight, visitor.weight):
        assert isinstance(weight, TwoTensor) and torch.equal(weight.b, torch.zeros(3, 3))


def test_text_modules_are_all_that_a_step_does_without():
    """Without their weights a session that is open takes steps."""
    for model in (random_model(NANO_TEXT), wan_model()):
        session = random_session(model)
        for module in model.generator.text_modules:
            module.to("meta")
        assert session.step().shape[-1] == 3
    assert Generator(NANO).text_modules == []


# ---- on a GPU ----

WIDE = GeneratorConfig(width=256, heads=4, layers=4, grid=(4, 6), window=2, text_width=64)
WIDE_WAN = WanConfig(heads=2, head_dim=128, ffn_width=256, layers=2, text_width=64, text_length=8)
GENERATORS = {"aapt": lambda: Generator(WIDE), "wan": lambda: transformer.WanTransformer(WIDE_WAN)}

Parts = tuple[torch.nn.Module, torch.nn.Module]


def on_meta_twice(make: Callable[[], torch.nn.Module]) -> list[Parts]:
    """Generator and VAE without memory, two times, made outside of the fake GPU, where it is quick."""
    return [(on_meta(make, torch.bfloat16), on_meta(lambda: MiniVAE(SMALL_VAE), torch.bfloat16)) for _ in range(2)]


def on_gpu(parts: Parts, **options: object) -> StreamModel:
    return StreamModel(*map(on_fake_gpu, parts), grid=(4, 6), **options)


@without_gpu
@pytest.mark.parametrize("kind", GENERATORS)
def test_the_weights_of_the_text_stream_leave_the_gpu_between_prompts(kind):
    kept_parts, parts = on_meta_twice(GENERATORS[kind])
    with fake_cuda() as gpu:
        kept = on_gpu(kept_parts)
        before = gpu.live_bytes
        with gpu.counting() as opening, StreamSession(kept, random_image(kept), prompt=random_prompt(kept)):
            opened = gpu.live_bytes - before
        most = opening.peak_bytes - before
        del kept, kept_parts

        before = gpu.live_bytes
        model = on_gpu(parts, offload_text=True)
        text = [weight_bytes(module) for module in model.generator.text_modules]
        weights = weight_bytes(model.generator) - sum(text) + weight_bytes(model.vae)
        assert gpu.live_bytes - before == pytest.approx(weights, abs=2**10)
        assert sum(text) > 2 * max(text) and on_host(model)
        before, image, prompt = gpu.live_bytes, random_image(model), random_prompt(model)
        with gpu.counting() as opening, StreamSession(model, image, prompt=prompt) as session:
            assert gpu.live_bytes - before == opened and on_host(model)
            with gpu.counting() as again:
                session.reset(prompt=random_prompt(model, 3))
            assert on_host(model)
        assert any(line.startswith("models/resting.py") for line in again.uploads)
        assert opening.peak_bytes - before <= most + 2 * max(text)
        assert again.peak_bytes - before <= most + opened + 2 * max(text)


def on_host(model: StreamModel) -> bool:
    text = {id(weight) for module in model.generator.text_modules for weight in module.parameters()}
    places = {(id(weight) in text, weight.device.type) for weight in model.generator.parameters()}
    return places == {(True, "cpu"), (False, "cuda")}


def test_the_plan_counts_the_text_stream():
    with torch.device("meta"):
        generator, vae = Generator(WIDE), MiniVAE(SMALL_VAE)
    plan = plan_memory(generator, vae, WIDE.grid, prompt=5)
    rested = plan_memory(generator, vae, WIDE.grid, prompt=5, offload_text=True)
    text = sum(map(weight_bytes, generator.text_modules))
    assert (plan.on_host, rested.on_host) == (0, text) and text > plan.generator / 3
    assert rested.total() == plan.total() - text


@without_gpu
def test_models_and_places_without_a_use_for_it():
    without_text, tied = (on_meta_twice(lambda config=config: Generator(config))[0] for config in (NANO, NANO_TEXT))
    with fake_cuda():
        with pytest.raises(ValueError, match=r"^offload_text: expected False: this model has no text stream, got True"):
            StreamModel(*map(on_fake_gpu, without_text), offload_text=True)
        generator, vae = map(on_fake_gpu, tied)
        generator.blocks[0].text.up.weight = generator.blocks[0].video.up.weight
        with pytest.raises(ValueError, match=r"^offload_text: expected False: other parts .* got blocks\.0\.video\.up"):
            StreamModel(generator, vae, offload_text=True)
        assert all(weight.device == FAKE_GPU for weight in generator.parameters())
    on_a_cpu = r"^offload_text: expected False: a model on a CPU .*, got True"
    with pytest.raises(ValueError, match=on_a_cpu):
        random_model(NANO_TEXT, offload_text=True)
    with pytest.raises(ValueError, match=on_a_cpu):
        StreamModel.from_pretrained("mini-person", offload_text=True)
    with pytest.raises(TypeError, match=r"^offload_text: expected bool, got str"):
        random_model(NANO_TEXT, offload_text="yes")
