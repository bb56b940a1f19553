# SPDX-License-Identifier: Apache-2.0
"""Whole models with every kernel on: a session streams what it streams with torch compositions."""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter

import pytest
import torch

from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.presets import NANO, NANO_TEXT
from aapt_fast.models.files.model_file import load_gallery
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.ops.calls import observe_ops
from aapt_fast.ops.kernels import KERNELS
from aapt_fast.streaming.session import StreamSession
from aapt_fast.testing import streams
from aapt_fast.testing.compare import relative_l2

MODELS = {
    "pose": dataclasses.replace(NANO, width=128),
    "text": dataclasses.replace(NANO_TEXT, width=128, grid=(8, 18)),  # 36 tokens: more than half a page
}
STEPS = 4  # one more than window, sink and own frame


def on_target(model: StreamModel, target) -> StreamModel:
    return StreamModel(model.generator.to(target.device), model.vae.to(target.device))


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, target) -> StreamModel:
    return on_target(streams.random_model(MODELS[request.param], torch.bfloat16), target)


def frames_of(model: StreamModel) -> torch.Tensor:
    with streams.random_session(model) as session:
        return streams.play(session, streams.random_controls(model, STEPS))[0].float()


def test_a_stream_with_kernels_is_the_stream_without(model, target):
    """The frames differ from those in float32 as much as torch's own bfloat16 does, up to a factor of two."""
    plain = frames_of(model)
    with target.kernels(schedule=1):
        computed = frames_of(model)
    oracle = frames_of(on_target(streams.random_model(model.config, torch.float32), target))
    assert not torch.equal(computed, plain)
    assert relative_l2(computed, oracle) < 2 * relative_l2(plain, oracle)


def test_a_stream_uses_the_kernels_of_its_ops(model, target):
    called = set()

    class Spy:
        """The module, noting what is asked of it: the first kernel of an op that is on, and which runs."""

        def __getattr__(self, name: str):
            called.add(name)
            return getattr(target.module, name)

    spying = dataclasses.replace(target, module=Spy())
    with spying.kernels():
        frames_of(model)
    ran = {kernel.split("/")[0] for kernel in KERNELS if kernel.replace("/", "_") in called}
    expected = {"channel_concat", "gate_residual_norm", "kv_write", "paged_attention", "philox_normal"}
    assert ran == expected | ({"clean_frame"} if model.config.prediction == "velocity" else set())


def test_the_bundled_model_streams_on_the_kernels(target):
    """Its heads are 56 wide; the frames differ from those in float32 as much as torch's own bfloat16 does."""
    start = load_gallery("mini-person")[3]

    def frames_and_calls(dtype: torch.dtype, kernels: str) -> tuple[torch.Tensor, dict[str, str]]:
        model = StreamModel.from_pretrained("mini-person", device=target.device, dtype=dtype)
        model.vae.float()  # a CPU takes half a minute for convolutions in bfloat16
        with (
            target.kernels(kernels, schedule=1),
            observe_ops() as calls,
            StreamSession(model, start, seed=7) as session,
        ):
            frames = streams.play(session, streams.random_controls(model, 2))[0].float()
        return frames, calls.what_ran()

    oracle, _ = frames_and_calls(torch.float32, "none")
    plain, _ = frames_and_calls(torch.bfloat16, "none")
    computed, ran = frames_and_calls(torch.bfloat16, "all")
    assert relative_l2(computed, oracle) < 2 * relative_l2(plain, oracle)
    with_kernels = {op for op, words in ran.items() if words == f"{op}/portable"}
    assert with_kernels == {"channel_concat", "gate_residual_norm", "kv_write", "paged_attention", "philox_normal"}


def test_heads_that_no_kernel_takes_are_computed_by_torch_with_one_warning_per_kernel(target):
    """Heads of 16, as other widths: `all` falls back, a kernel that is named raises an error."""
    narrow = on_target(streams.random_model(NANO, torch.bfloat16), target)
    plain = frames_of(narrow)
    with warnings.catch_warnings(record=True) as caught, target.kernels():
        warnings.simplefilter("default")
        assert relative_l2(frames_of(narrow), plain) < 0.05
    refused = Counter(str(warning.message).partition(" does not run: ")[0] for warning in caught)
    with_heads = {name for name, kernel in KERNELS.items() if kernel.widths and hasattr(target.module, kernel.function)}
    assert set(refused) == with_heads and set(refused.values()) == {1}, [str(warning.message) for warning in caught]
    for name in ("kv_write/portable", "paged_attention/portable"):
        with target.kernels(name), pytest.raises(target.module.Unsupported, match="16"):
            frames_of(narrow)


def test_a_fork_is_bit_equal(model, target):
    controls = streams.random_controls(model, STEPS)
    with target.kernels(), streams.random_session(model) as session:
        streams.play(session, controls[:2])
        with session.fork() as fork:
            frames, video = streams.play(session, controls[2:])
            for actual, expected in zip(streams.play(fork, controls[2:]), (frames, video), strict=True):
                assert torch.equal(actual, expected)


def test_attention_of_a_whole_clip_is_not_a_kernels_job(target):
    """Training attends through the growing cache, with gradients; only ops with a backward run their kernels there."""
    torch.manual_seed(0)
    model = Generator(MODELS["pose"]).bfloat16().to(target.device)
    noise = torch.randn(1, 16, 2, 4, 4).bfloat16().to(target.device)
    control = torch.randn(1, model.config.control.step_channels, 2, 4, 4).bfloat16().to(target.device)
    arguments = (noise, noise, control, torch.ones(1, device=target.device))
    with torch.no_grad():
        model.unpatch.weight.normal_(std=0.1)
    model(*arguments, model.new_cache()).sum().backward()
    expected = model.patch_embed.weight.grad.clone()
    model.zero_grad()
    with target.kernels():
        model(*arguments, model.new_cache()).sum().backward()
    assert relative_l2(model.patch_embed.weight.grad, expected) < 0.05
