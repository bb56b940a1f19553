# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from aapt_fast.ops import FrameRope, GrowingCache, normalise_and_rotate
from aapt_fast.ops import cache as cache_module
from aapt_fast.ops.window import WindowRule
from aapt_fast.testing.compare import assert_near

BATCH, TOKENS, HEADS, KV_HEADS, HEAD_DIM, LAYERS, WINDOW = 2, 6, 4, 2, 16, 2, 3
ROPE = FrameRope((2, 3), HEAD_DIM)


def rule(window: int) -> WindowRule:
    """AAPT's."""
    return WindowRule(window=window, sink=1, sink_position="saturated")


RULE = rule(WINDOW)
Clip = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def clip(frames: int, **kwargs) -> Clip:
    """Per layer q [B, F, N, H, D], k and v [B, F, N, Hkv, D]."""
    shape = BATCH, frames, TOKENS
    return [
        (
            torch.randn(*shape, HEADS, HEAD_DIM, **kwargs),
            torch.randn(*shape, KV_HEADS, HEAD_DIM, **kwargs),
            torch.randn(*shape, KV_HEADS, HEAD_DIM, **kwargs),
        )
        for _ in range(LAYERS)
    ]


def weights() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.linspace(0.5, 1.5, HEAD_DIM), torch.linspace(1.5, 0.5, HEAD_DIM)


def prompt(batch: int = 1, **kwargs) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [tuple(torch.randn(2, batch, 5, KV_HEADS, HEAD_DIM, **kwargs)) for _ in range(LAYERS)]


def run(cache: GrowingCache, clip: Clip, frames: slice) -> list[torch.Tensor]:
    """One call with some frames of the clip: per layer [B, F, N, H, D]."""
    outputs = [
        cache.attend(layer, q[:, frames], k[:, frames], v[:, frames], *weights())
        for layer, (q, k, v) in enumerate(clip)
    ]
    cache.advance(outputs[0].shape[1])
    return outputs


def rotated(x: torch.Tensor, weight: torch.Tensor, position: int) -> torch.Tensor:
    """RMSNorm and rotation of x [B, N, H, D] in float64, by complex numbers."""
    x = x.double()
    x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight
    cos, sin = (table.double() for table in ROPE(position))
    return torch.view_as_real(
        torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.complex(cos, sin)[:, None]
    ).flatten(-2)


def oracle(clip: Clip, layer: int, index: int, text: list | None = None) -> torch.Tensor:
    """Frame `index` of one layer in float64, from the definition at the head of ops/window.py: [B, N, H, D]."""
    (q, k, v), (q_weight, k_weight) = clip[layer], weights()
    keys, values = [], []
    if text is not None:
        keys.append(text[layer][0].double().expand(BATCH, -1, -1, -1))
        values.append(text[layer][1].double().expand(BATCH, -1, -1, -1))
    for frame in sorted({1, *range(max(index - WINDOW, 1), index + 1)}):
        position = max(frame, index - (WINDOW + 1)) if frame == 1 else frame
        keys.append(rotated(k[:, frame - 1], k_weight, position))
        values.append(v[:, frame - 1].double())
    keys, values = (torch.cat(parts, 1).repeat_interleave(HEADS // KV_HEADS, 2) for parts in (keys, values))
    scores = torch.einsum("bnhd,bshd->bhns", rotated(q[:, index - 1], q_weight, index), keys) * HEAD_DIM**-0.5
    return torch.einsum("bhns,bshd->bnhd", scores.softmax(-1), values)


@pytest.mark.parametrize("with_text", [False, True], ids=["no text", "text"])
def test_every_frame_equals_the_definition(with_text):
    frames, text = clip(9), prompt() if with_text else None
    outputs = run(GrowingCache(LAYERS, RULE, ROPE, text), frames, slice(0, 9))
    for layer in range(LAYERS):
        for index in range(1, 10):
            assert_near(outputs[layer][:, index - 1], oracle(frames, layer, index, text), 1e-5, f"frame {index}")


@pytest.mark.parametrize("calls", [[1] * 9, [3, 3, 3], [1, 5, 2, 1], [4, 5]], ids=str)
def test_whole_clip_equals_parts(calls):
    frames, text = clip(9), prompt(BATCH)
    whole = run(GrowingCache(LAYERS, RULE, ROPE, text), frames, slice(0, 9))
    cache, parts = GrowingCache(LAYERS, RULE, ROPE, text), []
    for count in calls:
        start = cache.next_frame - 1
        parts.append(run(cache, frames, slice(start, start + count)))
    assert cache.next_frame == 10
    for layer in range(LAYERS):
        assert_near(torch.cat([part[layer] for part in parts], 1), whole[layer], 1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_equals_flex_attention_with_the_block_causal_mask():
    count = WINDOW + 2  # as long as the sink is at its own place
    frames = clip(count)
    outputs = run(GrowingCache(LAYERS, RULE, ROPE), frames, slice(0, count))

    def allowed(_batch, _head, query, key):
        query, key = query // TOKENS, key // TOKENS
        return (key <= query) & ((query - key <= WINDOW) | (key == 0))

    total = count * TOKENS
    mask = create_block_mask(allowed, None, None, total, total, device="cpu")
    tables = ROPE(range(1, count + 1))
    for (q, k, v), actual in zip(frames, outputs, strict=True):
        q, k = (normalise_and_rotate(x.flatten(1, 2), w, *tables) for x, w in zip((q, k), weights(), strict=True))
        heads_first = (x.transpose(1, 2) for x in (q, k, v.flatten(1, 2)))
        expected = flex_attention(*heads_first, block_mask=mask, enable_gqa=True)
        assert_near(actual.flatten(1, 2), expected.transpose(1, 2), 1e-5)


def test_future_frames_change_nothing():
    frames = clip(6)
    expected = run(GrowingCache(LAYERS, RULE, ROPE), frames, slice(0, 6))
    changed = [tuple(torch.cat((x[:, :4], 100 * x[:, 4:]), 1) for x in layer) for layer in frames]
    actual = run(GrowingCache(LAYERS, RULE, ROPE), changed, slice(0, 6))
    for layer in range(LAYERS):
        assert torch.equal(actual[layer][:, :4], expected[layer][:, :4])
        assert not torch.equal(actual[layer][:, 4:], expected[layer][:, 4:])


def test_a_frame_sees_sink_and_window_and_nothing_between():
    frames = clip(8)
    _, _, v = frames[0]
    v.requires_grad_()
    outputs = run(GrowingCache(LAYERS, RULE, ROPE), frames, slice(0, 8))
    (gradient,) = torch.autograd.grad(outputs[0][:, 7].sum(), v)
    seen = gradient.abs().sum((0, 2, 3, 4)) > 0
    assert seen.tolist() == [True, False, False, False, True, True, True, True]


def test_an_endless_stream_shows_no_distance_that_a_short_clip_does_not(monkeypatch):
    """Up to frame 10,000: every frame sees the distances that frame WINDOW + 2 sees, those before it fewer."""
    seen = []

    def note(q, k, v, **_):
        seen.append(q[0, 0, 0, 0] - k[0, 0, :, 0])
        return q

    def positions(index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A "rotation" that multiplies by the position, so that queries and keys of ones become their positions."""
        return torch.full((1, 1), float(index)), torch.zeros(1, 1)

    monkeypatch.setattr(cache_module, "scaled_dot_product_attention", note)
    cache, ones = GrowingCache(1, RULE, positions), torch.ones(1, 500, 1, 1, 2)
    for _ in range(20):
        cache.attend(0, ones, ones, ones, None, None)
        cache.advance(500)
    distances = [sorted(frame.tolist()) for frame in seen]
    assert len(distances) == 10_000
    for index, of_frame in enumerate(distances, start=1):
        assert of_frame == list(range(min(index, WINDOW + 2)))


@pytest.mark.parametrize("window", [0, 1, 100])
def test_window_sizes(window):
    frames = clip(5)
    whole = run(GrowingCache(LAYERS, rule(window), ROPE), frames, slice(0, 5))
    cache = GrowingCache(LAYERS, rule(window), ROPE)
    for index in range(5):
        parts = run(cache, frames, slice(index, index + 1))
        assert_near(parts[1], whole[1][:, index : index + 1], 1e-5)


def test_gradients_flow_through_the_cache_and_stop_at_detach():
    frames = clip(6, requires_grad=True)
    whole = run(GrowingCache(LAYERS, RULE, ROPE), frames, slice(0, 6))
    keys = [k for _, k, _ in frames]
    expected = torch.autograd.grad(sum(x.square().sum() for x in whole), keys, retain_graph=True)
    cache = GrowingCache(LAYERS, RULE, ROPE)
    first, second = run(cache, frames, slice(0, 4)), run(cache, frames, slice(4, 6))
    loss = sum(x.square().sum() for x in first + second)
    for actual, wanted in zip(torch.autograd.grad(loss, keys), expected, strict=True):
        assert_near(actual, wanted, 1e-5)

    cache = GrowingCache(LAYERS, RULE, ROPE, prompt(requires_grad=True))
    run(cache, frames, slice(0, 4))
    detached = cache.detach()
    outputs = run(detached, frames, slice(4, 6))
    assert detached.next_frame == 7 and cache.next_frame == 5
    for actual, wanted in zip(outputs, run(cache, frames, slice(4, 6)), strict=True):
        assert torch.equal(actual, wanted)
    (gradient,) = torch.autograd.grad(outputs[0].sum(), frames[0][2])
    assert torch.equal(gradient[:, :4], torch.zeros_like(gradient[:, :4]))
    assert gradient[:, 4:].abs().sum() > 0


def test_gradients_equal_those_of_the_definition():
    frames = clip(6, requires_grad=True)
    inputs = list(frames[0])
    outputs = run(GrowingCache(LAYERS, RULE, ROPE), frames, slice(0, 6))
    actual = torch.autograd.grad(outputs[0].square().sum(), inputs)
    defined = torch.stack([oracle(frames, 0, index) for index in range(1, 7)], 1)
    for gradient, expected in zip(actual, torch.autograd.grad(defined.square().sum(), inputs), strict=True):
        assert_near(gradient, expected, 1e-5)


def test_attend_may_be_repeated_before_advance():
    frames, noisy = clip(3), clip(3)
    expected = run(GrowingCache(LAYERS, RULE, ROPE), frames, slice(0, 3))
    cache = GrowingCache(LAYERS, RULE, ROPE)
    for layer in range(LAYERS):
        cache.attend(layer, *noisy[layer], *weights())
    for actual, wanted in zip(run(cache, frames, slice(0, 3)), expected, strict=True):
        assert torch.equal(actual, wanted)


def test_tables_are_computed_once_per_call_and_forgotten():
    asked: list[int] = []

    def rope(index: int) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(index)
        return ROPE(index)

    frames, cache = clip(20), GrowingCache(LAYERS, RULE, rope)
    for index in range(20):
        asked.clear()
        run(cache, frames, slice(index, index + 1))
        assert asked in ([index + 1], [index + 1, index - WINDOW])  # of the frame and of a sink that has moved
    assert not cache._tables and all(len(past) == WINDOW + 1 for past in cache._past)


def test_bfloat16_stays_near_float32():
    frames = clip(6)
    expected = run(GrowingCache(LAYERS, RULE, ROPE), frames, slice(0, 6))
    halves = [tuple(x.bfloat16() for x in layer) for layer in frames]
    for actual, wanted in zip(run(GrowingCache(LAYERS, RULE, ROPE), halves, slice(0, 6)), expected, strict=True):
        assert actual.dtype == torch.bfloat16
        assert_near(actual, wanted, 0.03)


def test_attention_for_training_on_a_cpu_equals_torchs(monkeypatch):
    """In bfloat16, output and gradients; only while gradients are recorded and while the scores fit."""
    q, k, v = (torch.randn(2, tokens, HEADS, HEAD_DIM, dtype=torch.bfloat16) for tokens in (6, 9, 9))
    trained = [x.clone().requires_grad_() for x in (q, k, v)]
    exact = [x.double().requires_grad_() for x in (q, k, v)]
    upstream = torch.randn(2, 6, HEADS, HEAD_DIM, dtype=torch.bfloat16)
    plain, calls = cache_module._plain_attention, []
    monkeypatch.setattr(cache_module, "_plain_attention", lambda *x: calls.append(len(x)) or plain(*x))

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return cache_module.attention(q, [(k[:, :4], v[:, :4]), (k[:, 4:], v[:, 4:])])

    made, wanted = attend(*trained), attend(*exact)
    assert len(calls) == 1 and made.dtype == torch.bfloat16
    assert_near(made, wanted, 0.02)
    gradients = torch.autograd.grad(made, trained, upstream), torch.autograd.grad(wanted, exact, upstream.double())
    for actual, expected in zip(*gradients, strict=True):
        assert_near(actual, expected, 0.02)
    attend(q, k, v)
    monkeypatch.setattr(cache_module, "_MOST_SCORES", 2 * HEADS * 6 * 9 - 1)
    assert_near(attend(*trained), wanted, 0.02)
    assert len(calls) == 1


def test_bad_arguments():
    with pytest.raises(ValueError, match="layers: expected at least 1, got 0"):
        GrowingCache(0, RULE, ROPE)
    with pytest.raises(ValueError, match="text: expected 2 entries, one per layer, got 1"):
        GrowingCache(LAYERS, RULE, ROPE, prompt()[:1])
    cache, [(q, k, v), _] = GrowingCache(LAYERS, RULE, ROPE), clip(2)
    with pytest.raises(ValueError, match=r"layer: expected 0\.\.1, got 2"):
        cache.attend(2, q, k, v, None, None)
    with pytest.raises(ValueError, match=r"k: expected shape \[2, 2, 6, Hkv, 16\], got \[2, 1, 6, 2, 16\]"):
        cache.attend(0, q, k[:, :1], v, None, None)
    with pytest.raises(ValueError, match=r"weight: expected shape \[16\] or \[64\], got \[3\]"):
        cache.attend(0, q, k, v, torch.ones(3), None)
    cache.attend(0, q, k, v, None, None)
    with pytest.raises(RuntimeError, match="advance: expected 2 frames in layer 1, attend has seen 0"):
        cache.advance(2)
