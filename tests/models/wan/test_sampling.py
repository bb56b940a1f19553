# SPDX-License-Identifier: Apache-2.0
"""Few-step sampling over the cached past against the same rules without any cache, on diffusers' model."""

from __future__ import annotations

import numpy
import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor

from aapt_fast.models.wan.sampling import FewStepSampler
from aapt_fast.models.wan.transformer import WanTransformer
from aapt_fast.ops.cache import Cache
from aapt_fast.ops.window import WindowRule
from aapt_fast.streaming.cache import PagedCache
from aapt_fast.streaming.cache_row import CacheRow
from aapt_fast.streaming.pages import PagePool, cache_pages
from aapt_fast.testing.compare import assert_near, relative_l2
from aapt_fast.testing.wan import TINY, diffusers_config, from_diffusers_state_dict

HEIGHT, WIDTH, TOKENS, FRAMES = 4, 6, 6, 9
RULES = [
    WindowRule(1, 2),
    WindowRule(1, 1, 2),
    WindowRule(2, 2, 1),
    WindowRule(3, 3),
    WindowRule(3, 1, 3),
    WindowRule(3, 18),
]
SCHEDULES = {
    "published": FewStepSampler(),
    "noisy context": FewStepSampler(steps=(1000, 500), context_noise=100.0),
    "not warped": FewStepSampler(steps=(900, 400), warp=False),
}


class Masked(WanAttnProcessor):
    """Self-attention under a mask [tokens, tokens]."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        return super().__call__(attn, hidden_states, encoder_hidden_states, self.mask, rotary_emb)


@pytest.fixture(scope="module")
def pair() -> tuple[WanTransformer, WanTransformer3DModel]:
    torch.manual_seed(1)
    theirs = WanTransformer3DModel(**diffusers_config(TINY)).eval().requires_grad_(False)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter.data, 1.0 if parameter.dim() == 1 else 0.0, 0.15)
    ours = WanTransformer(TINY).requires_grad_(False)
    ours.load_state_dict(from_diffusers_state_dict(theirs.state_dict()))
    return ours, theirs


def block_sizes(blocks: WindowRule, image: bool) -> list[int]:
    """Of FRAMES frames; an image is a block of its own."""
    return [1] * image + [blocks.frames] * ((FRAMES - image) // blocks.frames)


def inputs(schedule: FewStepSampler, sizes: list[int], batch: int = 1) -> tuple[list[list[Tensor]], Tensor, Tensor]:
    """Noise of each block and level, the prompt, and an image."""
    torch.manual_seed(3)
    noise = [[torch.randn(batch, 16, size, HEIGHT, WIDTH) for _ in schedule.steps] for size in sizes]
    return noise, torch.randn(batch, 7, TINY.text_width), torch.randn(batch, 16, 1, HEIGHT, WIDTH)


def uncached(
    theirs, noise: list[list[Tensor]], text: Tensor, image: Tensor | None, rule: WindowRule, schedule: FewStepSampler
):
    """All frames so far go through the network in every evaluation: those before at the level of the context."""
    sizes = ([1] if image is not None else []) + [block[0].shape[2] for block in noise]
    newest = [sum(sizes[: b + 1]) - 1 for b, size in enumerate(sizes) for _ in range(size)]
    mask = torch.zeros(len(newest), len(newest), dtype=torch.bool)
    for i, last in enumerate(newest):
        for j in range(last + 1):  # the sink, and the newest of the frames up to the end of the block
            rest = rule.window + rule.frames if rule.window is not None else len(newest)
            mask[i, j] = j < rule.sink or j > last - rest
    mask = mask.repeat_interleave(TOKENS, 0).repeat_interleave(TOKENS, 1)
    frames = image if image is not None else noise[0][0][:, :, :0]
    batch = len(text)
    for block in noise:
        x, past = block[0], frames.shape[2]
        for number, step in enumerate(schedule.steps):
            s = step / 1000
            sigma = schedule.shift * s / (1 + (schedule.shift - 1) * s) if schedule.warp else s
            clip = torch.cat([frames, x], 2)
            level = torch.full((batch, clip.shape[2]), schedule.context_noise)
            level[:, past:] = 1000 * sigma
            total = clip.shape[2] * TOKENS
            for layer in theirs.blocks:
                layer.attn1.set_processor(Masked(mask[:total, :total]))
            v = theirs(clip, level.repeat_interleave(TOKENS, 1), text).sample[:, :, past:]
            clean = x - sigma * v
            if number + 1 < len(schedule.steps):
                s = schedule.steps[number + 1] / 1000
                lower = schedule.shift * s / (1 + (schedule.shift - 1) * s) if schedule.warp else s
                x = (1 - lower) * clean + lower * block[number + 1]
        frames = torch.cat([frames, clean], 2)
    return frames


def cached(ours, noise, text: Tensor, image: Tensor | None, cache: Cache, schedule: FewStepSampler) -> Tensor:
    context = ours.encode_context(text)
    frames = []
    if image is not None:
        schedule.remember(ours, image, context, [cache])
        frames.append(image)
    return torch.cat(frames + [sample(ours, block, context, cache, schedule) for block in noise], 2)


def sample(ours, block: list[Tensor], context, cache: Cache, schedule: FewStepSampler) -> Tensor:
    return schedule.sample(ours, torch.stack(block), None, None, context, [cache], False)


def paged(ours: WanTransformer, rule: WindowRule) -> PagedCache:
    """Exactly as many pages as are needed, full of NaN."""
    pool = PagePool(TINY.layers, cache_pages(TOKENS, rule), TINY.heads, TINY.head_dim)
    pool.k.fill_(torch.nan)
    pool.v.fill_(torch.nan)
    return PagedCache([CacheRow(pool, rule, ours.rope(HEIGHT, WIDTH), TOKENS, eps=TINY.eps)])


@pytest.mark.parametrize("image", [False, True], ids=["text", "image"])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_equals_the_rules_without_a_cache(pair, rule, schedule, image):
    ours, theirs = pair
    noise, text, first = inputs(schedule, block_sizes(rule, image)[image:])
    first = first if image else None
    expected = uncached(theirs, noise, text, first, rule, schedule)
    assert expected.isfinite().all() and 0.3 < expected.std() < 30
    growing = cached(ours, noise, text, first, ours.new_cache(HEIGHT, WIDTH, rule), schedule)
    assert relative_l2(growing, expected) < 1e-4
    assert relative_l2(cached(ours, noise, text, first, paged(ours, rule), schedule), expected) < 1e-4


def test_a_batch_equals_its_rows(pair):
    ours, _ = pair
    noise, text, _ = inputs(FewStepSampler(), [2, 2, 2, 2], batch=2)
    rule = WindowRule(2, 2, 1)
    both = cached(ours, noise, text, None, ours.new_cache(HEIGHT, WIDTH, rule), FewStepSampler())
    for row in range(2):
        own = [[x[row : row + 1] for x in block] for block in noise]
        alone = cached(ours, own, text[row : row + 1], None, ours.new_cache(HEIGHT, WIDTH, rule), FewStepSampler())
        assert_near(both[row : row + 1], alone, 1e-4)


@pytest.mark.parametrize(
    "wrong", [WindowRule(2, 1, 1), WindowRule(2, 3), WindowRule(2, 3, 1), WindowRule(2, 1, 2)], ids=str
)
def test_another_rule_gives_other_frames(pair, wrong):
    """The tolerance above tells rules apart that differ by one frame."""
    ours, theirs = pair
    noise, text, _ = inputs(FewStepSampler(), [2] * 4)
    expected = uncached(theirs, noise, text, None, WindowRule(2, 2, 1), FewStepSampler())
    actual = cached(ours, noise, text, None, ours.new_cache(HEIGHT, WIDTH, wrong), FewStepSampler())
    assert relative_l2(actual, expected) > 1e-3


def test_the_clean_block_is_what_later_blocks_see(pair):
    """Without the last evaluation the cache would hold keys of the lowest level."""
    ours, _ = pair
    noise, text, _ = inputs(FewStepSampler(), [2, 2])
    with_noise = FewStepSampler(context_noise=FewStepSampler().levels()[-1])
    first, second = (
        cached(ours, noise, text, None, ours.new_cache(HEIGHT, WIDTH), schedule)
        for schedule in (FewStepSampler(), with_noise)
    )
    assert torch.equal(first[:, :, :2], second[:, :, :2])
    assert relative_l2(first[:, :, 2:], second[:, :, 2:]) > 1e-3


def test_levels():
    assert FewStepSampler().levels() == pytest.approx((1000.0, 937.5, 2500 / 3, 625.0), abs=1e-9)
    assert FewStepSampler(steps=(1000, 500), warp=False).levels() == (1000.0, 500.0)
    assert FewStepSampler().nfe == 5 and FewStepSampler().draws == 4
    assert FewStepSampler().levels(first=True) == FewStepSampler().levels()
    assert not FewStepSampler().begins_differently


def test_the_first_block_may_have_other_levels(pair):
    ours, _ = pair
    schedule = FewStepSampler(steps=(1000,), first_steps=(1000, 500), warp=False, context_noise=3.0)
    assert (schedule.levels(), schedule.levels(first=True)) == ((1000.0,), (1000.0, 500.0))
    assert schedule.nfe == 2 and schedule.draws == 2 and schedule.begins_differently
    noise, text, _ = inputs(FewStepSampler(steps=(1000, 500)), [2])
    context = ours.encode_context(text)

    def frames(sampler: FewStepSampler, first: bool) -> Tensor:
        return sampler.sample(ours, torch.stack(noise[0]), None, None, context, [ours.new_cache(HEIGHT, WIDTH)], first)

    two = FewStepSampler(steps=(1000, 500), warp=False, context_noise=3.0)
    one = FewStepSampler(steps=(1000,), warp=False, context_noise=3.0)
    assert torch.equal(frames(schedule, True), frames(two, False))
    assert torch.equal(frames(schedule, False), frames(one, False))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": ()}, "steps: expected falling levels"),
        ({"steps": (500, 1000)}, "steps: expected falling levels"),
        ({"steps": (1001, 500)}, "steps: expected falling levels"),
        ({"steps": (1000, 0)}, "steps: expected falling levels"),
        ({"first_steps": ()}, "first_steps: expected falling levels"),
        ({"first_steps": (500, 750)}, "first_steps: expected falling levels"),
        ({"steps": (1.0, 0.5)}, r"steps: expected falling levels of 1000, as .*, got \(1.0, 0.5\), in 0..1"),
        ({"first_steps": [1, 0.75, 0.5]}, "first_steps: expected falling levels of 1000"),
        ({"steps": (1000, float("nan"))}, "steps: expected falling levels"),
        ({"shift": float("inf")}, "shift: expected a positive number"),
        ({"shift": 0.0}, "shift: expected a positive number"),
        ({"context_noise": -1.0}, "context_noise: expected a level in 0..1000"),
    ],
)
def test_bad_schedules(options, message):
    with pytest.raises(ValueError, match=message):
        FewStepSampler(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": ("1000", "500")}, "steps: expected a number, got '1000'"),
        ({"steps": (1000, None)}, "steps: expected a number, got None"),
        ({"steps": (True,)}, "steps: expected a number, got True"),
        ({"steps": 1000}, "steps: expected tuple or list, got int"),
        ({"first_steps": ([1000],)}, r"first_steps: expected a number, got \[1000\]"),
        ({"shift": "5"}, "shift: expected a number, got '5'"),
        ({"context_noise": None}, "context_noise: expected a number, got None"),
        ({"warp": "no"}, "warp: expected bool, got str"),
        ({"window": 3}, "window: expected WindowRule, got int"),
    ],
)
def test_fields_of_another_type(options, message):
    with pytest.raises(TypeError, match=f"^{message}"):
        FewStepSampler(**options)


def test_steps_may_be_a_list_or_numbers_of_numpy():
    expected = FewStepSampler(steps=(1000, 500), first_steps=(1000, 750, 500))
    schedule = FewStepSampler(steps=[1000, 500.0], first_steps=list(numpy.linspace(1000, 500, 3, dtype=numpy.float32)))
    assert all(schedule.levels(first) == expected.levels(first) for first in (False, True))


def test_bad_noise(pair):
    ours, _ = pair
    noise, text, _ = inputs(FewStepSampler(), [2])
    context, cache = ours.encode_context(text), ours.new_cache(HEIGHT, WIDTH)
    with pytest.raises(ValueError, match="noise: expected 4 tensors, one per level, got 3"):
        sample(ours, noise[0][:3], context, cache, FewStepSampler())
    with pytest.raises(ValueError, match="noise: expected shape"):
        sample(ours, [level[:, :8] for level in noise[0]], context, cache, FewStepSampler())
