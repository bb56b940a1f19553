# SPDX-License-Identifier: Apache-2.0
"""The growing cache with blocks of frames, as Self-Forcing makes them, against masked attention over all frames."""

from __future__ import annotations

import pytest
import torch

from aapt_fast.ops import FrameRope, GrowingCache
from aapt_fast.ops.window import WindowRule
from aapt_fast.testing.compare import assert_near

BATCH, TOKENS, HEADS, HEAD_DIM, LAYERS, FRAMES = 2, 6, 2, 16, 2, 11
ROPE = FrameRope((2, 3), HEAD_DIM)


def blocks(frames: int, seen: int | None = None, sink: int = 0) -> WindowRule:
    """A rule in Self-Forcing's words: `seen` counts sink, past and block."""
    return WindowRule(frames, None if seen is None else seen - sink - frames, sink)


RULES = [
    blocks(1, 1),
    blocks(1, 4, 1),
    blocks(2, 5, 0),
    blocks(3, 6, 2),
    blocks(3, 7, 4),
    blocks(3, None),
    blocks(4, 20),
]


def clip(frames: int = FRAMES, **kwargs) -> list[torch.Tensor]:
    """Per layer q, k, v stacked: [3, B, F, N, H, D]."""
    return [torch.randn(3, BATCH, frames, TOKENS, HEADS, HEAD_DIM, **kwargs) for _ in range(LAYERS)]


def weights() -> tuple[torch.Tensor, torch.Tensor]:
    """Across heads."""
    return torch.linspace(0.5, 1.5, HEADS * HEAD_DIM), torch.linspace(1.5, 0.5, HEADS * HEAD_DIM)


def run(cache: GrowingCache, clip: list[torch.Tensor], calls: list[int]) -> torch.Tensor:
    """The clip in calls of so many frames: [layers, B, F, N, H, D]."""
    outputs = []
    for frames in calls:
        part = slice(cache.next_frame - 1, cache.next_frame - 1 + frames)
        outputs.append(torch.stack([cache.attend(i, *qkv[:, :, part], *weights()) for i, qkv in enumerate(clip)]))
        cache.advance(frames)
    return torch.cat(outputs, 2)


def oracle(qkv: torch.Tensor, rule: WindowRule, sizes: list[int]) -> torch.Tensor:
    """Attention with a mask over the whole clip, in float64; positions by complex numbers."""
    block_of = [number for number, size in enumerate(sizes) for _ in range(size)]
    newest = [max(f for f, b in enumerate(block_of) if b == block) for block in block_of]
    mask = torch.zeros(FRAMES, FRAMES, dtype=torch.bool)
    for i in range(FRAMES):
        for j in range(newest[i] + 1):
            recent = rule.capacity is None or newest[i] - j < rule.capacity - rule.sink
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
    assert_near(run(GrowingCache(LAYERS, rule, ROPE), inputs, [FRAMES]), expected, 1e-5)
    assert_near(run(GrowingCache(LAYERS, rule, ROPE), inputs, sizes), expected, 1e-5)


def test_a_short_first_block():
    inputs, rule, sizes = clip(), blocks(3, 7, 1), [1, 3, 3, 3, 1]
    expected = torch.stack([oracle(qkv, rule, sizes) for qkv in inputs])
    assert_near(run(GrowingCache(LAYERS, rule, ROPE), inputs, sizes), expected, 1e-5)


def test_the_last_evaluation_counts():
    inputs, others, rule = clip(4), clip(4), blocks(2, 4)
    expected = run(GrowingCache(LAYERS, rule, ROPE), inputs, [2, 2])
    cache = GrowingCache(LAYERS, rule, ROPE)
    for layer, qkv in enumerate(others):
        cache.attend(layer, *qkv[:, :, :2], *weights())
    assert torch.equal(run(cache, inputs, [2, 2]), expected)


def test_forgets_what_nobody_sees():
    cache = GrowingCache(LAYERS, blocks(2, 5, 1), ROPE)
    run(cache, clip(10), [2] * 5)
    assert [sorted(past) for past in cache._past] == [[1, 8, 9, 10]] * LAYERS


def test_gradients_reach_the_past():
    inputs = clip(4, requires_grad=True)
    outputs = run(GrowingCache(LAYERS, blocks(2, 4), ROPE), inputs, [2, 2])
    outputs[:, :, 2:].sum().backward()
    assert inputs[0].grad[1, :, :2].abs().max() > 0 and inputs[0].grad[0, :, :2].abs().max() == 0


def test_bad_calls():
    cache, (qkv, _) = GrowingCache(LAYERS, blocks(2, 4), ROPE), clip(2)
    with pytest.raises(ValueError, match=r"layer: expected 0..1, got 2"):
        cache.attend(2, *qkv, None, None)
    with pytest.raises(ValueError, match="k: expected shape"):
        cache.attend(0, qkv[0], qkv[1][:, :1], qkv[2], None, None)
    cache.attend(0, *qkv, None, None)
    with pytest.raises(RuntimeError, match="expected 2 frames in layer 1, attend has seen 0"):
        cache.advance(2)
    with pytest.raises(ValueError, match="layers: expected at least 1"):
        GrowingCache(0, WindowRule(), ROPE)
