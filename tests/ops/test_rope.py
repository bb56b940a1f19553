# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from aapt_fast.ops import FrameRope, normalise_and_rotate
from aapt_fast.ops.rope import rope_split, spatial_angles
from aapt_fast.testing.compare import assert_near


def test_split_of_wan():
    assert rope_split(128) == (22, 21, 21)
    assert [sum(rope_split(width)) for width in (56, 64, 128)] == [28, 32, 64]


def test_angles_by_hand():
    cos, sin = FrameRope((1, 2), 14, theta=100.0)([2])
    frequencies = torch.tensor([1.0, 100 ** (-1 / 3), 100 ** (-2 / 3)], dtype=torch.float64)
    times = 2 * frequencies
    columns = [torch.tensor([column * 1.0, column * 0.1], dtype=torch.float64) for column in (0, 1)]
    angles = torch.stack([torch.cat([times, torch.zeros(2), column]) for column in columns])
    assert cos.dtype == sin.dtype == torch.float32
    assert_near(cos, angles.cos(), 1e-7)
    assert_near(sin, angles.sin(), 1e-7)


@pytest.mark.parametrize("frames", [1, 3])
def test_equals_the_rotary_embedding_of_diffusers(frames):
    transformer_wan = pytest.importorskip("diffusers.models.transformers.transformer_wan")
    oracle = transformer_wan.WanRotaryPosEmbed(attention_head_dim=128, patch_size=(1, 2, 2), max_seq_len=64)
    cos, sin = oracle(torch.zeros(1, 16, frames, 8, 12))  # [1, N, 1, D], every angle twice
    for actual, expected in zip(FrameRope((4, 6), 128)(range(frames)), (cos, sin), strict=True):
        assert_near(actual, expected[0, :, 0, 0::2], 1e-6)


@pytest.mark.parametrize("frame", [1, 1000, 1_000_000, 1_000_000.5, 123_456_789])
@pytest.mark.parametrize("interval", [1.0, 0.1])
def test_large_indices_keep_their_precision(frame, interval):
    mpmath = pytest.importorskip("mpmath")
    pairs, theta = 10, 10000.0
    cos, sin = (
        table[0, :pairs] for table in FrameRope((1, 1), 6 * pairs, theta=theta, temporal_interval=interval)(frame)
    )
    with mpmath.workdps(50):
        angles = [
            mpmath.mpf(frame) * mpmath.mpf(interval) * mpmath.power(theta, mpmath.mpf(-i) / pairs) for i in range(pairs)
        ]
        exact_cos = torch.tensor([float(mpmath.cos(angle)) for angle in angles], dtype=torch.float64)
        exact_sin = torch.tensor([float(mpmath.sin(angle)) for angle in angles], dtype=torch.float64)
    assert_near(cos, exact_cos, 1e-6)
    assert_near(sin, exact_sin, 1e-6)


def test_scores_depend_on_the_distance_only():
    q, k = torch.randn(2, 1, 1, 64)
    scores = []
    for shift in (0, 7, 500_000):
        rotated = [
            normalise_and_rotate(x, None, *FrameRope((1, 1), 64)(frame + shift)) for x, frame in ((q, 9), (k, 4))
        ]
        scores.append((rotated[0] * rotated[1]).sum())
    assert_near(torch.stack(scores), scores[0].expand(3), 1e-5)


def test_stretched_grids_cover_the_same_range():
    native = spatial_angles((4, 6), (3, 3), 1e4, (4, 6))
    finer = spatial_angles((8, 12), (3, 3), 1e4, (4, 6)).view(8, 12, 6)
    assert_near(finer[::2, ::2].flatten(0, 1), native, 1e-12)
    assert finer[-1, -1, 0] < 4 and finer[-1, -1, 3] < 6


def test_temporal_interval_scales_time_only():
    half, whole = FrameRope((2, 3), 64, temporal_interval=0.5), FrameRope((2, 3), 64)
    assert torch.equal(half(6)[0], whole(3)[0])


def test_frames_follow_each_other():
    rope = FrameRope((2, 3), 64)
    for several, single in zip(rope([4, 2, 9]), zip(*(rope(frame) for frame in (4, 2, 9)), strict=True), strict=True):
        assert several.shape == (18, 32)
        assert torch.equal(several, torch.cat(single))


BAD_INPUTS = {
    "grid": ({"grid": (0, 4)}, r"grid: expected two positive sizes \(h, w\), got \(0, 4\)"),
    "head_dim": ({"head_dim": 63}, "head_dim: expected a positive even number, got 63"),
    "theta": ({"theta": 0.0}, r"theta: expected a positive number, got 0\.0"),
    "spatial_extent": ({"spatial_extent": (4, 0)}, r"spatial_extent: expected two positive sizes .*, got \(4, 0\)"),
}


@pytest.mark.parametrize(("change", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_bad_inputs(change, message):
    with pytest.raises(ValueError, match=message):
        FrameRope(**{"grid": (4, 4), "head_dim": 64, **change})
