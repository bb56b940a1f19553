# SPDX-License-Identifier: Apache-2.0
"""Metrics: the distance of a video from the truth.

All but Frechet distance and diversity take video [..., 3, T, H, W] in -1..1 and return one value per video frame; they
raise ValueError for other shapes.
Where chance has a part there are many truths, `futures`: then a video should be one of them, and not their average.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from aapt_fast.errors import require, require_shape

LUMA = (0.299, 0.587, 0.114)


def psnr(video: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio [..., T] in dB; the peak is the full range of 2."""
    _require_videos(video, truth)
    error = ((video - truth) / 2).square().mean(dim=(-4, -2, -1))
    return -10 * error.clamp_min(1e-10).log10()


def ssim(video: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity [..., T] of the luma in 7x7 uniform windows (Wang et al. 2004)."""
    _require_videos(video, truth)
    a, b = _luma(video), _luma(truth)
    mean_a, mean_b = F.avg_pool2d(a, 7, 1), F.avg_pool2d(b, 7, 1)
    var_a = F.avg_pool2d(a * a, 7, 1) - mean_a**2
    var_b = F.avg_pool2d(b * b, 7, 1) - mean_b**2
    covariance = F.avg_pool2d(a * b, 7, 1) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    score = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    score = score / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return score.mean(dim=(-3, -2, -1)).view(*video.shape[:-4], video.shape[-3])


def sharpness(video: Tensor, truth: Tensor) -> Tensor:
    """Gradient energy [..., T] relative to the truth's: 1 is as sharp as the truth, less is blur, more is noise."""
    _require_videos(video, truth)
    return _gradient_energy(video) / _gradient_energy(truth).clamp_min(1e-12)


def frame_change(video: Tensor) -> Tensor:
    """Mean absolute change [..., T] of the pixels since the video frame before; 0 for the first."""
    change = (video[..., 1:, :, :] - video[..., :-1, :, :]).abs().mean(dim=(-4, -2, -1))
    return F.pad(change, (1, 0))


def frechet_distance(features_a: Tensor, features_b: Tensor) -> Tensor:
    """Squared Frechet distance of the Gaussians with the means and covariances of two sets of features, float64 [].

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)), features_a [N, D] and features_b [M, D]. The root's trace is the
    sum of the singular values of A^(1/2) B^(1/2). Raises ValueError for other shapes, fewer than two samples, and
    values that are not finite.
    """
    means, traces, roots = [], [], []
    for name, features in (("features_a", features_a), ("features_b", features_b)):
        require_shape(name, features, "N", features_a.shape[-1])
        require(len(features) >= 2, name, "at least two samples", len(features))
        require(bool(features.isfinite().all()), name, "finite values", "nan or inf")
        covariance = torch.atleast_2d(features.double().T.cov())
        values, vectors = torch.linalg.eigh(covariance)
        means.append(features.double().mean(0))
        traces.append(covariance.trace())
        roots.append((vectors * values.clamp_min(0).sqrt()) @ vectors.T)
    cross = torch.linalg.svdvals(roots[0] @ roots[1]).sum()
    distance = (means[0] - means[1]).square().sum() + traces[0] + traces[1] - 2 * cross
    return distance.clamp_min(0)


def nearest_future(video: Tensor, futures: Tensor) -> tuple[Tensor, Tensor]:
    """PSNR [B, T] in dB of video [B, 3, T, H, W] to the nearest of its futures [B, K, 3, T, H, W], and to their mean.

    The nearest is that of the whole clip. The second minus the first tells blur: where futures differ, the mean is the
    nearest to everything, but to another true future only by 10 log10(2 K / (K + 1)) dB, 3 at most, if no future is
    like another, and to an average by far more. Raises ValueError for futures of another shape.
    """
    require_shape("video", video, "B", 3, "T", "H", "W")
    require_shape("futures", futures, len(video), "K", *video.shape[1:])
    distance = (futures - video[:, None]).square().mean(dim=(2, 3, 4, 5))
    nearest = futures[torch.arange(len(video), device=video.device), distance.argmin(1)]
    return psnr(video, nearest), psnr(video, futures.mean(1))


def diversity(samples: Tensor, futures: Tensor) -> Tensor:
    """Variety [B] of samples [B, S, 3, T, H, W] of a model, relative to that of the futures [B, K, 3, T, H, W].

    A ratio of variances, both summed over the clip, for in its first video frames futures hardly differ. 1 varies as
    the truth, 0 is one answer to every noise, an average for example. Noise counts as variety, so read it beside
    `sharpness`. Raises ValueError for fewer than two samples or futures, or other shapes.
    """
    require_shape("samples", samples, "B", "S", 3, "T", "H", "W")
    require_shape("futures", futures, len(samples), "K", *samples.shape[2:])
    require(samples.shape[1] > 1, "samples", "at least 2 per clip", samples.shape[1])
    require(futures.shape[1] > 1, "futures", "at least 2 per clip", futures.shape[1])
    return samples.var(1).sum(dim=(1, 2, 3, 4)) / futures.var(1).sum(dim=(1, 2, 3, 4))


def _require_videos(video: Tensor, truth: Tensor) -> None:
    require_shape("video", video, *video.shape[:-4], 3, "T", "H", "W")
    require_shape("truth", truth, *video.shape)


def _luma(video: Tensor) -> Tensor:
    weights = torch.tensor(LUMA, device=video.device).view(3, 1, 1, 1)
    grey = ((video.to(_wide(video)) + 1) / 2 * weights).sum(dim=-4)
    return grey.reshape(-1, 1, *grey.shape[-2:])


def _wide(video: Tensor) -> torch.dtype:
    """float32, or float64 as it is: differences of squares would lose all digits of a half-precision video."""
    return torch.promote_types(video.dtype, torch.float32)


def _gradient_energy(video: Tensor) -> Tensor:
    video = video.to(_wide(video))
    across = (video[..., 1:] - video[..., :-1]).square().mean(dim=(-4, -2, -1))
    down = (video[..., 1:, :] - video[..., :-1, :]).square().mean(dim=(-4, -2, -1))
    return across + down
