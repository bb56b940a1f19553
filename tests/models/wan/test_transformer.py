# SPDX-License-Identifier: Apache-2.0
"""The Wan transformer against diffusers' `WanTransformer3DModel` with the same weights; causal against whole clips."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from aapt_fast.errors import CheckpointError
from aapt_fast.models.wan.config import WanConfig
from aapt_fast.models.wan.keys import diffusers_to_wan_key, without_wrappers
from aapt_fast.models.wan.transformer import WanTransformer
from aapt_fast.ops.window import WindowRule
from aapt_fast.streaming.cache import PagedCache
from aapt_fast.streaming.cache_row import CacheRow
from aapt_fast.streaming.pages import PagePool, cache_pages
from aapt_fast.testing.compare import assert_near, relative_l2
from aapt_fast.testing.wan import TINY, WAN_KINDS, diffusers_config, from_diffusers_state_dict, random_wan

TOLERANCE = 5e-6
BATCH, FRAMES, HEIGHT, WIDTH = 2, 3, 4, 6
TOKENS = HEIGHT * WIDTH // 4


def oracle(config: WanConfig) -> WanTransformer3DModel:
    """diffusers' model with random weights; gains and biases too."""
    torch.manual_seed(1)
    model = WanTransformer3DModel(**diffusers_config(config))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data, 1.0 if parameter.dim() == 1 else 0.0, 0.2)
    return model.eval().requires_grad_(False)


def same_weights(theirs: WanTransformer3DModel, config: WanConfig) -> WanTransformer:
    ours = WanTransformer(config).eval().requires_grad_(False)
    ours.load_state_dict(from_diffusers_state_dict(theirs.state_dict()), strict=True)
    return ours


def inputs(config: WanConfig, frames: int = FRAMES) -> dict[str, Tensor]:
    """Of a clip; image models get 512 text tokens, as diffusers splits the context there."""
    torch.manual_seed(2)
    given = {
        "hidden_states": torch.randn(BATCH, config.in_channels, frames, HEIGHT, WIDTH),
        "timestep": torch.tensor([937.5, 20.0]),
        "encoder_hidden_states": torch.randn(BATCH, 512 if config.image_width else 7, config.text_width),
    }
    if config.image_width:
        given["encoder_hidden_states_image"] = torch.randn(BATCH, 5, config.image_width)
    return given


@pytest.fixture(scope="module", params=WAN_KINDS)
def pair(request) -> tuple[WanTransformer, WanTransformer3DModel]:
    config = WAN_KINDS[request.param]
    theirs = oracle(config)
    return same_weights(theirs, config), theirs


# ---- against diffusers ----


def test_equals_diffusers(pair):
    ours, theirs = pair
    given = inputs(ours.config)
    expected = theirs(**given).sample
    actual = ours(**given)
    assert expected.std() > 0.1
    assert actual.shape == (BATCH, ours.config.out_channels, FRAMES, HEIGHT, WIDTH)
    assert_near(actual, expected, TOLERANCE)


def test_timesteps_per_token_and_per_frame_equal_diffusers(pair):
    ours, theirs = pair
    given = inputs(ours.config)
    given["timestep"] = torch.rand(BATCH, FRAMES * TOKENS) * 1000
    assert_near(ours(**given), theirs(**given).sample, TOLERANCE)
    per_frame = torch.rand(BATCH, FRAMES) * 1000
    given["timestep"] = per_frame.repeat_interleave(TOKENS, 1)
    expected = theirs(**given).sample
    given["timestep"] = per_frame
    assert_near(ours(**given), expected, TOLERANCE)


def test_bfloat16_is_as_good_as_that_of_diffusers(pair):
    ours, theirs = pair
    given = inputs(ours.config)
    expected = theirs(**given).sample
    half = same_weights(theirs, ours.config).to(torch.bfloat16)
    actual = half(**{name: value if name == "timestep" else value.bfloat16() for name, value in given.items()})
    assert actual.dtype == torch.bfloat16
    assert relative_l2(actual, expected) < 1.1e-2


def test_gradients_equal_diffusers():
    theirs = oracle(TINY).requires_grad_()
    ours = same_weights(theirs, TINY).requires_grad_()
    given, grad = inputs(TINY), torch.randn(BATCH, 16, FRAMES, HEIGHT, WIDTH)
    (theirs(**given).sample * grad).sum().backward()
    (ours(**given) * grad).sum().backward()
    ours_by_name = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        assert_near(ours_by_name[diffusers_to_wan_key(name)].grad, parameter.grad, 2e-5, name)


def test_float64_stays_float64():
    model, given = random_wan().double(), inputs(TINY)
    exact = model(**{name: value.double() for name, value in given.items()})
    assert exact.dtype == torch.float64
    assert_near(random_wan()(**given), exact, TOLERANCE)


@pytest.mark.parametrize(
    ("config", "tensors", "parameters"),
    [
        (WanConfig(), 825, 1_418_996_800),
        (WanConfig(heads=40, layers=40, ffn_width=13824), 1095, 14_288_491_584),
        (WanConfig(heads=40, layers=40, ffn_width=13824, in_channels=36, image_width=1280), 1303, 16_394_878_784),
        (WanConfig(heads=24, ffn_width=14336, in_channels=48, out_channels=48), 825, 4_999_787_712),
    ],
    ids=["2.1 1.3B", "14B", "2.1 I2V 14B", "2.2 5B"],
)
def test_the_published_key_layout(config, tensors, parameters):
    with torch.device("meta"):
        state = WanTransformer(config).state_dict()
    assert len(state) == tensors
    assert sum(tensor.numel() for tensor in state.values()) == parameters
    width = config.width
    shapes = {
        "patch_embedding.weight": (width, config.in_channels, 1, 2, 2),
        "text_embedding.0.weight": (width, 4096),
        "time_embedding.0.weight": (width, 256),
        "time_projection.1.weight": (6 * width, width),
        "blocks.0.modulation": (1, 6, width),
        "blocks.0.self_attn.norm_q.weight": (width,),
        "blocks.0.norm3.bias": (width,),
        "blocks.29.cross_attn.k.bias": (width,),
        "blocks.0.ffn.0.weight": (config.ffn_width, width),
        "head.head.weight": (4 * config.out_channels, width),
        "head.modulation": (1, 2, width),
    }
    if config.image_width:
        shapes |= {"img_emb.proj.1.weight": (1280, 1280), "blocks.0.cross_attn.norm_k_img.weight": (width,)}
    assert {name: tuple(state[name].shape) for name in shapes} == shapes
    with torch.device("meta"):
        theirs = from_diffusers_state_dict(oracle(config).state_dict())
    assert {name: tensor.shape for name, tensor in theirs.items()} == {n: t.shape for n, t in state.items()}


def test_key_names():
    for name in ("blocks.0.norm3.weight", "blocks.0.attn1.add_k_proj.weight", "proj_out.scale", "blocks.x.norm2.bias"):
        with pytest.raises(CheckpointError, match=name):
            diffusers_to_wan_key(name)
    wrapped = "model._fsdp_wrapped_module.blocks.3._checkpoint_wrapped_module.ffn.0._orig_mod.weight"
    assert without_wrappers(wrapped) == "blocks.3.ffn.0.weight"


# ---- causal ----


def by_blocks(model: WanTransformer, given: dict[str, Tensor], cache, sizes: list[int]) -> Tensor:
    """The clip in calls of so many frames."""
    context = model.encode_context(given["encoder_hidden_states"], given.get("encoder_hidden_states_image"))
    parts = []
    for part, time in zip(given["hidden_states"].split(sizes, 2), given["timestep"].split(sizes, 1), strict=True):
        parts.append(model.velocity(part, time, context, cache))
        cache.advance(part.shape[2])
    return torch.cat(parts, 2)


@pytest.mark.parametrize("blocks", [WindowRule(1, 1, 1), WindowRule(2, 3), WindowRule(3, 2, 2), WindowRule(3)], ids=str)
def test_causal_equals_parts(pair, blocks):
    model, _ = pair
    given = inputs(model.config, frames=11)
    given["timestep"] = torch.rand(BATCH, 11) * 1000
    sizes = [blocks.frames] * (11 // blocks.frames) + [11 % blocks.frames] * (11 % blocks.frames > 0)
    whole = model(**given, causal=blocks)
    assert_near(by_blocks(model, given, model.new_cache(HEIGHT, WIDTH, blocks), sizes), whole, TOLERANCE)
    same = dataclasses.replace(model.config, window_rule=blocks)
    other = WanTransformer(same).requires_grad_(False)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(**given, causal=True), whole)


def test_causal_with_one_block_is_not_causal(pair):
    model, _ = pair
    given = inputs(model.config)
    assert_near(model(**given, causal=WindowRule(FRAMES, 0)), model(**given), TOLERANCE)
    assert (model(**given, causal=WindowRule(1, 20)) - model(**given)).abs().max() > 1e-3


def test_future_frames_change_past_blocks_by_nothing():
    model, given = random_wan(), inputs(TINY, frames=8)
    expected = model(**given, causal=True)
    given["hidden_states"][:, :, 5] += 1  # in the third block of two
    change = (model(**given, causal=True) - expected).abs().amax((0, 1, 3, 4))
    assert change[:4].max() == 0.0 and change[4:6].min() > 1e-4


def test_runs_on_the_paged_cache_of_frame_wise_models():
    model, given = random_wan(), inputs(TINY, frames=6)
    given = {name: value[:1] for name, value in given.items()}
    given["timestep"] = torch.full((1, 6), 500.0)
    rule = WindowRule(window=2, sink=1, sink_position="saturated")
    pool = PagePool(TINY.layers, cache_pages(TOKENS, rule), TINY.heads, TINY.head_dim)
    pool.k.fill_(torch.nan)
    cache = PagedCache([CacheRow(pool, rule, model.rope(HEIGHT, WIDTH), TOKENS, eps=TINY.eps)])
    from_pages = by_blocks(model, given, cache, [1] * 6)
    # while frame 1 is in the window, the rule is that of blocks of one frame
    assert_near(from_pages[:, :, :3], model(**given, causal=WindowRule(1, 2))[:, :, :3], TOLERANCE)
    assert from_pages.isfinite().all()


# ---- arguments ----


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hidden_states": torch.zeros(BATCH, 15, 3, 4, 6)}, r"hidden_states: expected shape \[B, 16, F, h, w\]"),
        ({"hidden_states": torch.zeros(BATCH, 16, 3, 5, 6)}, "hidden_states height: .* multiple of 2, got 5"),
        ({"hidden_states": torch.zeros(BATCH, 16, 3, 4, 7)}, "hidden_states width: .* multiple of 2, got 7"),
        ({"timestep": torch.zeros(BATCH, 4)}, r"timestep: expected shape \[2\], \[2, 3\] or \[2, 18\], got \[2, 4\]"),
        ({"timestep": torch.tensor(3.0)}, "timestep: expected shape"),
        ({"encoder_hidden_states": torch.zeros(BATCH, 7, 23)}, "encoder_hidden_states: expected shape"),
        ({"encoder_hidden_states": torch.zeros(3, 7, 24)}, "encoder_hidden_states: expected 2 rows or 1, got 3"),
        ({"encoder_hidden_states_image": torch.zeros(BATCH, 5, 20)}, "encoder_hidden_states_image: expected None"),
    ],
)
def test_bad_arguments(changed, message):
    with pytest.raises(ValueError, match=message):
        random_wan()(**{**inputs(TINY), **changed})


def test_padding():
    model = random_wan()
    text = torch.randn(2, 5, 24)
    padded = model.prepare_prompt(text)
    assert padded.shape == (2, 512, 24) and torch.equal(padded[:, :5], text) and padded[:, 5:].abs().max() == 0
    with pytest.raises(ValueError, match="at most 512 tokens, got 513"):
        model.prepare_prompt(torch.zeros(1, 513, 24))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 0}, "heads: expected at least 1, got 0"),
        ({"head_dim": 15}, "head_dim: expected a positive even number, got 15"),
        ({"timestep_features": 3}, "timestep_features: expected a positive even number"),
        ({"eps": 0.0}, "eps: expected a positive number"),
    ],
)
def test_bad_configurations(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)
