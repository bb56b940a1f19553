# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch

from aapt_fast.testing.compare import assert_near
from aapt_fast.training.metrics import (
    diversity,
    frame_change,
    frechet_distance,
    nearest_future,
    psnr,
    sharpness,
    ssim,
)

METRICS = [psnr, ssim, sharpness]


def videos(*leading: int, frames: int = 4) -> torch.Tensor:
    """Smooth random video [..., 3, frames, 24, 24] in -1..1."""
    noise = torch.rand(*leading, 3, frames, 6, 6) * 1.6 - 0.8
    return noise.repeat_interleave(4, -1).repeat_interleave(4, -2)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("leading", [(), (2,), (2, 3)], ids=str)
def test_one_value_per_video_frame(metric, leading):
    truth = videos(*leading)
    video = truth + 0.1 * torch.randn_like(truth)
    values = metric(video, truth)
    assert values.shape == (*leading, 4)
    first = (0,) * len(leading)
    alone = metric(video[first][:, 2:3], truth[first][:, 2:3])
    assert_near(alone, values[first][2:3], 1e-5, "one video frame on its own")


@pytest.mark.parametrize("offset", [0.2, -0.02])
def test_psnr_of_a_constant_offset(offset):
    """Peak 2: 20 log10(2 / |offset|)."""
    truth = videos(2)
    expected = torch.full((2, 4), 20 * math.log10(2 / abs(offset)))
    assert_near(psnr(truth + offset, truth), expected, 1e-4, "psnr")


def test_psnr_of_the_worst_and_of_the_truth_itself():
    white = torch.ones(3, 1, 8, 8)
    assert float(psnr(-white, white)) == pytest.approx(0, abs=1e-5)
    assert float(psnr(white, white)) == pytest.approx(100)


def test_ssim_of_the_truth_is_one():
    truth = videos(2)
    assert_near(ssim(truth, truth), torch.ones(2, 4), 1e-5, "ssim")


def test_ssim_of_flat_pictures_is_the_luminance_term():
    """Grey levels a and b in 0..1 without any structure: (2 a b + c) / (a^2 + b^2 + c), c = 0.01^2."""
    a, b = 0.3, 0.7
    flat = [torch.full((3, 1, 16, 16), 2 * level - 1) for level in (a, b)]
    assert float(ssim(*flat)) == pytest.approx((2 * a * b + 1e-4) / (a**2 + b**2 + 1e-4), rel=1e-3)


def test_ssim_of_an_inverted_structure_is_negative():
    """A checkerboard and its negative: equal means, covariance minus the variance."""
    board = ((torch.arange(16)[:, None] + torch.arange(16)) % 2).float().expand(3, 1, 16, 16)
    assert float(ssim(board - 0.5, 0.5 - board)) < -0.9


def test_ssim_falls_with_noise():
    truth = videos(1)
    scores = [float(ssim(truth + size * torch.randn_like(truth), truth).mean()) for size in (0.0, 0.1, 0.4)]
    assert scores[0] > scores[1] + 0.01 > scores[2] + 0.1


@pytest.mark.parametrize("contrast", [1.0, 0.5, 2.0])
def test_sharpness_is_the_ratio_of_gradient_energies(contrast):
    truth = videos(2)
    assert_near(sharpness(contrast * truth + 0.1, truth), torch.full((2, 4), contrast**2), 1e-4, "sharpness")


@pytest.mark.parametrize("metric", [ssim, sharpness])
def test_a_video_in_half_precision_is_measured_like_its_values(metric):
    """A codec that decodes in bfloat16, as on ranks, is not told to be worse than it is."""
    truth = (torch.rand(2, 3, 4, 32, 32) * 2 - 1).bfloat16()
    video = (truth.float() + 0.1 * torch.randn(truth.shape)).bfloat16()
    assert_near(metric(video, truth), metric(video.float(), truth.float()), 1e-6, "half precision")


def test_sharpness_counts_both_directions():
    """The truth rises by 1 across and by 2 down: energy 5, of which a video that rises across has 1."""
    across, down = torch.arange(8.0).expand(3, 1, 8, 8), torch.arange(8.0)[:, None].expand(3, 1, 8, 8)
    truth = across + 2 * down
    assert_near(sharpness(across, truth), torch.tensor([1 / 5]), 1e-5, "across")
    assert_near(sharpness(2 * down, truth), torch.tensor([4 / 5]), 1e-5, "down")


def test_sharpness_tells_blur_from_noise():
    truth = videos(1)
    blurred = torch.nn.functional.avg_pool3d(truth, (1, 3, 3), 1, (0, 1, 1), count_include_pad=False)
    assert sharpness(blurred, truth).max() < 0.7
    assert sharpness(truth + 0.3 * torch.randn_like(truth), truth).min() > 1.3


def test_frame_change_is_the_mean_absolute_step() -> None:
    video = torch.zeros(2, 3, 4, 8, 8)
    video[0, :, 1:] = 0.5
    video[0, :, 3, :4] = -0.5  # half of the pixels
    assert_near(frame_change(video), torch.tensor([[0.0, 0.5, 0.0, 0.5], [0.0] * 4]), 1e-6)
    assert frame_change(video[:, :, :1]).tolist() == [[0.0], [0.0]]


def exactly(mean: torch.Tensor, covariance: torch.Tensor, samples: int = 400) -> torch.Tensor:
    """Float64 samples [samples, D] whose empirical moments are exactly these."""
    x = torch.randn(samples, len(mean), dtype=torch.float64)
    x = x - x.mean(0)
    x = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T.cov()), x.T, upper=False)
    return (torch.linalg.cholesky(covariance) @ x).T + mean


def random_covariance(width: int) -> torch.Tensor:
    root = torch.randn(width, width, dtype=torch.float64)
    return root @ root.T + 0.1 * torch.eye(width, dtype=torch.float64)


def test_frechet_distance_of_equal_sets_is_zero() -> None:
    features = torch.randn(300, 16) * torch.logspace(-2, 2, 16)
    assert float(frechet_distance(features, features.flip(0))) < 1e-9 * float(features.double().var(0).sum())
    assert float(frechet_distance(features[:5], features[:5])) < 1e-6  # fewer samples than features


def test_frechet_distance_of_a_shift_is_its_square() -> None:
    features, shift = torch.randn(300, 8), torch.arange(8.0)
    distance = frechet_distance(features, features + shift)
    assert distance.dtype == torch.float64 and distance.shape == ()
    assert float(distance) == pytest.approx(float(shift.square().sum()), rel=1e-5)


def test_frechet_distance_of_commuting_covariances() -> None:
    """A = Q a Q', B = Q b Q': |m|^2 + sum (sqrt a - sqrt b)^2."""
    axes = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    a, b = torch.rand(6, dtype=torch.float64) + 0.1, 4 * torch.rand(6, dtype=torch.float64) + 0.1
    zero, mean = torch.zeros(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    first, second = exactly(zero, axes * a @ axes.T), exactly(mean, axes * b @ axes.T, samples=150)
    expected = mean.square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    assert float(frechet_distance(first, second)) == pytest.approx(float(expected), rel=1e-9)


def test_frechet_distance_of_general_covariances() -> None:
    """tr (A B)^(1/2) is the sum of the roots of the eigenvalues of A B, which does not commute."""
    zero, a, b = torch.zeros(5, dtype=torch.float64), random_covariance(5), random_covariance(5)
    first, second = exactly(zero, a), exactly(zero, b)
    cross = torch.linalg.eigvals(a @ b).real.sqrt().sum()
    expected = float(a.trace() + b.trace() - 2 * cross)
    assert float(frechet_distance(first, second)) == pytest.approx(expected, rel=1e-9)
    assert float(frechet_distance(second, first)) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_refuses_nonsense() -> None:
    good = torch.randn(4, 3)
    with pytest.raises(ValueError, match=r"features_b: expected shape \[N, 3\], got \[4, 2\]"):
        frechet_distance(good, good[:, :2])
    with pytest.raises(ValueError, match="features_a: expected at least two samples, got 1"):
        frechet_distance(good[:1], good)
    with pytest.raises(ValueError, match="features_b: expected finite values"):
        frechet_distance(good, good / 0)


def constants(*levels: float) -> torch.Tensor:
    """Flat grey videos [K, 3, 2, 8, 8]."""
    return torch.stack([torch.full((3, 2, 8, 8), level) for level in levels])


def decibels(difference: float) -> torch.Tensor:
    return torch.full((1, 2), 20 * math.log10(2 / difference))


def test_nearest_future_of_flat_videos():
    """Futures 0, 0.4 and 0.8 with mean 0.4; a video of 0.7 is 0.1 from one of them and 0.3 from the mean."""
    nearest, mean = nearest_future(constants(0.7), constants(0.0, 0.4, 0.8)[None])
    assert_near(nearest, decibels(0.1), 1e-3, "nearest")
    assert_near(mean, decibels(0.3), 1e-3, "mean")


def test_each_clip_has_its_own_futures_and_the_nearest_is_that_of_the_whole_clip():
    turning = constants(0.0)  # starts as future 0, ends as future 1, nearer to which it is as a whole
    turning[:, :, 1] = 0.7
    video = torch.cat([turning, constants(0.2)])
    futures = torch.stack([constants(0.0, 0.5), constants(-0.4, 0.3)])
    nearest, _ = nearest_future(video, futures)
    levels = torch.tensor([[0.5, 0.2], [0.1, 0.1]])
    assert_near(nearest, 20 * (2 / levels).log10(), 1e-3, "nearest")


@pytest.mark.parametrize("count", [2, 8])
def test_blur_is_the_nearness_to_the_mean(count):
    """Independent noise of variance s: a true future is 2 s from another and s (K + 1) / K from the mean."""
    futures, other = 0.1 * torch.randn(1, count, 3, 2, 64, 64), 0.1 * torch.randn(1, 3, 2, 64, 64)
    nearest, mean = nearest_future(other, futures)
    assert float((mean - nearest).mean()) == pytest.approx(10 * math.log10(2 * count / (count + 1)), abs=0.15)
    nearest, mean = nearest_future(torch.zeros_like(other), futures)  # an average of all there could be
    assert float((mean - nearest).mean()) == pytest.approx(10 * math.log10(count), abs=0.15)


@pytest.mark.parametrize("contrast", [0.0, 0.5, 1.0])
def test_diversity_is_the_ratio_of_variances(contrast):
    futures = torch.randn(2, 3, 3, 4, 8, 8)
    samples = 0.3 + contrast * futures.flip(1)
    assert_near(diversity(samples, futures), torch.full((2,), contrast**2), 1e-5, "diversity")


def test_diversity_does_not_depend_on_how_many_there_are():
    ratio = diversity(torch.randn(1, 2, 3, 2, 64, 64), torch.randn(1, 9, 3, 2, 64, 64))
    assert_near(ratio, torch.ones(1), 0.06, "diversity")


def test_futures_that_do_not_fit_are_refused():
    video, futures = torch.rand(2, 3, 4, 8, 8), torch.rand(2, 5, 3, 4, 8, 8)
    with pytest.raises(ValueError, match=r"futures: expected shape \[2, K, 3, 4, 8, 8\]"):
        nearest_future(video, futures[:1])
    with pytest.raises(ValueError, match="samples: expected at least 2 per clip, got 1"):
        diversity(video[:, None], futures)
    with pytest.raises(ValueError, match="futures: expected at least 2 per clip, got 1"):
        diversity(futures, video[:, None])
