# SPDX-License-Identifier: Apache-2.0
"""Recorded forward passes, played back by `testing.recorder` as a GPU plays a CUDA graph, are the plain ones."""

from __future__ import annotations

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.models.attention_dispatch import attention_backend
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from tests.integrations.diffusers_models import image_transformer, random_transformer
from tests.integrations.recorded_calls import KEPT, assert_right, inputs, made, model, patched, plain
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import aapt_fast
from aapt_fast.integrations import attention, diffusers_attention
from aapt_fast.integrations.recorded_forward import MAX_RECORDINGS
from aapt_fast.ops import dense_attention as dense

__all__ = ["made", "model"]  # fixtures


# ---- the same results ----


@pytest.mark.parametrize("build", [random_transformer, image_transformer])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_one_recording_for_all_times_and_prompts(build, mode, made):
    model = patched(build())
    with mode():
        assert_right(model, 0, 1, 2, 0)
        first, second = (model(**inputs(seed, like=model)).sample for seed in (0, 1))
    assert made == ["cpu"] and (first - second).abs().max() > 1e-2


def test_a_recording_serves_every_mode(model, made):
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad, torch.inference_mode):
        with mode():
            assert_right(model, 0, 1)
            assert model(**inputs()).sample.is_inference() == (mode is torch.inference_mode)
    with torch.inference_mode():
        given = inputs(3)
    assert torch.equal(model(**given).sample, plain(model, **given))
    assert made == ["cpu"]


def test_a_time_for_every_token(model, made):
    for seed in (0, 1):
        given = inputs(seed) | {"timestep": torch.randint(1000, (2, 3 * 4 * 6))}
        assert torch.equal(model(**given).sample, plain(model, **given))
    assert made == ["cpu"]


def test_results_are_given_as_before_and_stay_as_they_were(model, made):
    given, others = inputs(0), inputs(1)
    original = WanTransformer3DModel.forward(model, **given)
    result = model(**given)
    assert type(result) is type(original) and torch.equal(result.sample, original.sample)
    (again,) = model(*given.values(), None, False, None)
    model(**others)
    assert torch.equal(result.sample, original.sample) and torch.equal(again, original.sample)
    again.zero_()
    assert torch.equal(model(**given, attention_kwargs={}, return_dict=False)[0], original.sample)
    assert made == ["cpu"]


def test_replays_run_no_python(model, monkeypatch):
    model(**inputs())
    monkeypatch.setattr(nn.Linear, "forward", None)
    model(**inputs(1))


def test_inputs_need_not_be_contiguous(model, made):
    given = inputs() | {"timestep": torch.tensor([7]).expand(2)}
    expected = plain(model, **given)
    given["hidden_states"] = given["hidden_states"].permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)
    assert torch.equal(model(**given).sample, expected) and made == ["cpu"]


# ---- signatures ----


def test_signatures_have_recordings_of_their_own_and_the_oldest_goes(model, made):
    def call(frames: int) -> None:
        given = inputs(frames, frames)
        assert torch.equal(model(**given).sample, plain(model, **given))

    for frames in (*range(1, MAX_RECORDINGS + 1), 1):
        call(frames)
    assert len(made) == MAX_RECORDINGS == len(vars(model)[KEPT])
    call(MAX_RECORDINGS + 1)  # in place of the one with two frames, which was used least recently
    call(1)
    assert len(made) == MAX_RECORDINGS + 1 and len(vars(model)[KEPT]) == MAX_RECORDINGS
    call(2)
    assert len(made) == MAX_RECORDINGS + 2


def test_dtypes_autocast_and_backends_belong_to_the_signature(model, made):
    assert_right(model, 0)
    half = inputs() | {"timestep": torch.tensor([3.5, 2])}
    assert torch.equal(model(**half).sample, plain(model, **half))
    assert len(made) == 2
    with torch.autocast("cpu", torch.bfloat16):
        assert_right(model, 0, 1)
    assert len(made) == 3
    with aapt_fast.use_kernels("none"):
        assert_right(model, 0, 1)
    assert len(made) == 4
    with attention_backend("_native_math"):
        assert_right(model, 0, 1)
    assert len(made) == 5
    every = [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
    for number, without in enumerate(every):
        with sdpa_kernel([backend for backend in every if backend != without]):
            assert_right(model, 0, 1)
        assert len(made) == 6 + number


def test_what_autocast_has_cast_before_is_not_recorded(made):
    model = patched(random_transformer().requires_grad_())
    with torch.no_grad():
        for factor in (1, 2):
            for parameter in model.parameters():
                parameter.mul_(factor)
            with torch.autocast("cpu", torch.bfloat16):
                expected = plain(model, **inputs())
                assert torch.equal(model(**inputs()).sample, expected)
                assert torch.is_autocast_cache_enabled()
    assert made == ["cpu"]


def test_attention_through_our_pages_is_recorded_too(monkeypatch, made):
    model = random_transformer()
    without = model(**inputs()).sample
    for module in (attention, diffusers_attention):
        monkeypatch.setattr(module, "attention_obstacle", lambda *_: None)
    monkeypatch.setattr(dense, "through_pages", lambda *_: True)
    patched(model)
    assert torch.equal(model(**inputs()).sample, without)
    aapt_fast.patch(model)
    for seed in (0, 1):
        expected = plain(model, **inputs(seed))
        assert torch.equal(model(**inputs(seed)).sample, expected)
    assert made == ["cpu"] * 2 and not torch.equal(model(**inputs()).sample, without)


# ---- weights ----


def adapter(model: WanTransformer3DModel, factor: float) -> None:
    """What an adapter makes of a linear layer, as peft has it: numbers in dictionaries."""

    class LowRank(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base_layer, self.down = base, nn.Linear(base.in_features, 2)
            self.up = nn.Linear(2, base.out_features)
            self.scaling, self._disable_adapters = {"default": factor}, False

        def forward(self, x: Tensor) -> Tensor:
            added = 0 if self._disable_adapters else self.scaling["default"] * self.up(self.down(x))
            return self.base_layer(x) + added

    LowRank.__module__ = "peft.tuners.tests"
    model.blocks[0].attn1.to_q = LowRank(model.blocks[0].attn1.to_q).requires_grad_(False)


def test_weights_changed_in_place_are_seen(model, made):
    assert_right(model, 0)
    model.load_state_dict({key: 2 * value for key, value in model.state_dict().items()})
    assert_right(model, 0, 1)
    assert made == ["cpu"]


def replaced(model):
    model.proj_out.weight = nn.Parameter(2 * model.proj_out.weight, requires_grad=False)


def assigned(model):
    model.load_state_dict({key: 2 * value for key, value in model.state_dict().items()}, assign=True)


def exchanged(model):
    model.scale_shift_table.data = 2 * model.scale_shift_table.data


def transposed(model):
    model.blocks[0].attn1.to_q.weight.data = model.blocks[0].attn1.to_q.weight.data.t()


def fused(model):
    model.blocks[0].attn1.fuse_projections()
    model.requires_grad_(False)


def another_act(model):
    model.condition_embedder.act_fn = nn.GELU()
    model(**inputs())
    model.condition_embedder.act_fn = nn.GELU("tanh")  # of the same class


def another_processor(model):
    class Doubled(WanAttnProcessor):
        def __call__(self, *arguments, **options):
            return 2 * super().__call__(*arguments, **options)

    Doubled.__module__ = WanAttnProcessor.__module__
    model.blocks[0].attn1.set_processor(Doubled())


CHANGES = (replaced, assigned, exchanged, transposed, fused, another_act, another_processor)


@pytest.mark.parametrize("change", CHANGES)
def test_other_weights_and_modules_are_recorded_anew(model, made, change):
    assert_right(model, 0)
    before = model(**inputs()).sample
    change(model)
    assert_right(model, 0, 1)
    assert len(made) == (3 if change is another_act else 2) and len(vars(model)[KEPT]) == 1
    assert change is fused or not torch.equal(model(**inputs()).sample, before)


def test_another_dtype_is_recorded_anew_and_the_old_one_freed_at_once(model, made):
    assert_right(model, 0)
    model.to(torch.float64)
    assert not vars(model)[KEPT]
    given = {key: value.double() if value.is_floating_point() else value for key, value in inputs().items()}
    assert torch.equal(model(**given).sample, plain(model, **given))
    assert made == ["cpu"] * 2
    model.to("cpu"), model(**given)
    assert made == ["cpu"] * 2


def test_adapters_come_change_and_go(model, made):
    before = model(**inputs()).sample
    adapter(model, 1.0)
    layer = model.blocks[0].attn1.to_q
    assert_right(model, 0, 1)
    assert not torch.equal(model(**inputs()).sample, before) and len(made) == 2
    for name, value in (("scaling", 3.0), ("disabled", True), ("disabled", False)):
        if name == "scaling":
            layer.scaling["default"] = value
        else:
            layer._disable_adapters = value
        assert_right(model, 0, 1)
    assert len(made) == 5
    model.blocks[0].attn1.to_q = layer.base_layer
    assert torch.equal(model(**inputs()).sample, before) and len(made) == 6


def test_a_chosen_backend_is_recorded_anew(model, made):
    assert_right(model, 0)
    model.set_attention_backend("_native_math")
    assert_right(model, 0, 1)
    model.reset_attention_backend()
    assert_right(model, 0)
    assert made == ["cpu"] * 3
