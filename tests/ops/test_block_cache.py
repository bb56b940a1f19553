# SPDX-License-Identifier: Apache-2.0
"""The cache of blocks against plain masked attention over all frames."""

from __future__ import annotations

import pytest
import torch

from aapt_fast.ops import FrameRope
from aapt_fast.ops.block_cache import BlockCache, Blocks
from aapt_fast.testing.compare import assert_near

BATCH, TOKENS, HEADS, HEAD_DIM, LAYERS, FRAMES = 2, 6, 2, 16, 2, 11
ROPE = FrameRope((2, 3), HEAD_DIM)
RULES = [
    Blocks(1, 1),
    Blocks(1, 4, 1),
    Blocks(2, 5, 0),
    Blocks(3, 6, 2),
    Blocks(3, 7, 4),
    Blocks(3, None),
    Blocks(4, 20),
]


def clip(frames: int = FRAMES, **kwargs) -> list[torch.Tensor]:
    """Per layer q, k, v stacked: [3, B, F, N, H, D]."""
    return [torch.randn(3, BATCH, frames, TOKENS, HEADS, HEAD_DIM, **kwargs) for _ in range(LAYERS)]


def weights() -> tuple[torch.Tensor, torch.Tensor]:
    """Across heads."""
    return torch.linspace(0.5, 1.5, HEADS * HEAD_DIM), torch.linspace(1.5, 0.5, HEADS * HEAD_DIM)


def run(cache: BlockCache, clip: list[torch.Tensor], calls: list[int]) -> torch.Tensor:
    """The clip in calls of so many frames: [layers, B, F, N, H, D]."""
    outputs = []
    for frames in calls:
        part = slice(cache.next_frame - 1, cache.next_frame - 1 + frames)
        outputs.append(torch.stack([cache.attend(i, *qkv[:, :, part], *weights()) for i, qkv in enumerate(clip)]))
        cache.advance(frames)
    return torch.cat(outputs, 2)


def oracle(qkv: torch.Tensor, rule: Blocks, sizes: list[int]) -> torch.Tensor:
    """Attention with a mask over the whole clip, in float64; positions by complex numbers."""
    block_of = [number for number, size in enumerate(sizes) for _ in range(size)]
    newest = [max(f for f, b in enumerate(block_of) if b == block) for block in block_of]
    mask = torch.zeros(FRAMES, FRAMES, dtype=torch.bool)
    for i in range(FRAMES):
        for j in range(newest[i] + 1):
            recent = rule.window is None or newest[i] - j < rule.window - rule.sink
            mask[i, j] = recent or j < rule.sink
    mask = mask.repeat_interleave(TOKENS, 0).repeat_interleave(TOKENS, 1)
    cos, sin = (table.double() for table in ROPE(range(FRAMES)))  # from 0: only distances count
    turn = torch.complex(cos, sin)[:, None]

    def prepared(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        x = x.double().flatten(1, 2)
        x = x / (x.square().mean((-2, -1), keepdim=True) + 1e-6).sqrt() * weight.view(HEADS, HEAD_DIM)
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turn).flatten(-2)

    q, k = (prepared(x, w) for x, w in zip(qkv[:2], weights(), strict=True))
    scores = torch.einsum("bnhd,bshd->bhns", q, k) * HEAD_DIM**-0.5
    attended = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    return torch.einsum("bhns,bshd->bnhd", attended, qkv[2].double().flatten(1, 2)).view(qkv[2].shape)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_equals_masked_attention(rule):
    inputs = clip()
    sizes = [rule.frames] * (FRAMES // rule.frames) + [FRAMES % rule.frames] * (FRAMES % rule.frames > 0)
    expected = torch.stack([oracle(qkv, rule, sizes) for qkv in inputs])
    assert_near(run(BlockCache(LAYERS, rule, ROPE), inputs, [FRAMES]), expected, 1e-5)
    assert_near(run(BlockCache(LAYERS, rule, ROPE), inputs, sizes), expected, 1e-5)


def test_a_short_first_block():
    inputs, rule, sizes = clip(), Blocks(3, 7, 1), [1, 3, 3, 3, 1]
    expected = torch.stack([oracle(qkv, rule, sizes) for qkv in inputs])
    assert_near(run(BlockCache(LAYERS, rule, ROPE), inputs, sizes), expected, 1e-5)


@pytest.mark.parametrize(
    ("rule", "newest", "seen"),
    [
        (Blocks(3, 6, 1), 3, [1, 2, 3]),
        (Blocks(3, 6, 1), 6, [1, 2, 3, 4, 5, 6]),
        (Blocks(3, 6, 1), 9, [1, 5, 6, 7, 8, 9]),
        (Blocks(3, 6, 3), 9, [1, 2, 3, 7, 8, 9]),
        (Blocks(2, 2), 7, [6, 7]),
        (Blocks(1, None, 2), 4, [1, 2, 3, 4]),
    ],
)
def test_what_is_seen(rule, newest, seen):
    assert rule.seen(newest) == seen


def test_the_last_evaluation_counts():
    inputs, others, rule = clip(4), clip(4), Blocks(2, 4)
    expected = run(BlockCache(LAYERS, rule, ROPE), inputs, [2, 2])
    cache = BlockCache(LAYERS, rule, ROPE)
    for layer, qkv in enumerate(others):
        cache.attend(layer, *qkv[:, :, :2], *weights())
    assert torch.equal(run(cache, inputs, [2, 2]), expected)


def test_forgets_what_nobody_sees():
    cache = BlockCache(LAYERS, Blocks(2, 5, 1), ROPE)
    run(cache, clip(10), [2] * 5)
    assert [sorted(past) for past in cache._past] == [[1, 8, 9, 10]] * LAYERS


def test_gradients_reach_the_past():
    inputs = clip(4, requires_grad=True)
    outputs = run(BlockCache(LAYERS, Blocks(2, 4), ROPE), inputs, [2, 2])
    outputs[:, :, 2:].sum().backward()
    assert inputs[0].grad[1, :, :2].abs().max() > 0 and inputs[0].grad[0, :, :2].abs().max() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 3), "frames: expected at least 1 per block, got 0"),
        ((3, 2), "window: expected at least 3 frames: the sink and a block, got 2"),
        ((3, 5, 3), "window: expected at least 6 frames: the sink and a block, got 5"),
        ((1, 2, -1), "sink: expected at least 0 frames, got -1"),
    ],
)
def test_bad_rules(arguments, message):
    with pytest.raises(ValueError, match=message):
        Blocks(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.5,), "frames: expected int, got float"),
        (("3",), "frames: expected int, got str"),
        ((3, 9.0), "window: expected int, got float"),
        ((3, 21, None), "sink: expected int, got NoneType"),
    ],
)
def test_rules_of_another_type(arguments, message):
    with pytest.raises(TypeError, match=message):
        Blocks(*arguments)


def test_bad_calls():
    cache, (qkv, _) = BlockCache(LAYERS, Blocks(2, 4), ROPE), clip(2)
    with pytest.raises(ValueError, match=r"layer: expected 0..1, got 2"):
        cache.attend(2, *qkv, None, None)
    with pytest.raises(ValueError, match="k: expected shape"):
        cache.attend(0, qkv[0], qkv[1][:, :1], qkv[2], None, None)
    cache.attend(0, *qkv, None, None)
    with pytest.raises(RuntimeError, match="expected 2 frames in layer 1, attend has seen 0"):
        cache.advance(2)
    with pytest.raises(ValueError, match="layers: expected at least 1"):
        BlockCache(0, Blocks(), ROPE)
