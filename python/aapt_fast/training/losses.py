# SPDX-License-Identifier: Apache-2.0
"""Losses as pure functions: tensors in, a scalar out, nothing edited. ValueError for tensors of other shapes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from aapt_fast.errors import require, require_shape


def codec_loss(video: Tensor, truth: Tensor) -> Tensor:
    """L1 + 1/2 L1 of the image gradients + 2 MSE between videos [B, 3, T, H, W]."""
    require_shape("video", video, "B", "C", "T", "H", "W")
    require_shape("truth", truth, *video.shape)
    error = video - truth
    across, down = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
    return error.abs().mean() + 0.5 * (across.abs().mean() + down.abs().mean()) + 2 * error.square().mean()


def relativistic_generator_loss(fake: Tensor, real: Tensor) -> Tensor:
    """mean softplus(-(fake - real)) over paired logits (R3GAN, arXiv 2501.05441, as a minimisation)."""
    require_shape("real", real, *fake.shape)
    return F.softplus(real - fake).mean()


def relativistic_discriminator_loss(fake: Tensor, real: Tensor) -> Tensor:
    """mean softplus(fake - real) over paired logits: the loss of the discriminator."""
    require_shape("real", real, *fake.shape)
    return F.softplus(fake - real).mean()


def frame_distance(predicted: Tensor, target: Tensor, channel_weights: Tensor) -> Tensor:
    """Mean weighted squared distance of frames [B, C, F, h, w]; the target gives no gradient."""
    require_shape("predicted", predicted, "B", "C", "F", "h", "w")
    require_shape("target", target, *predicted.shape)
    require_shape("channel_weights", channel_weights, predicted.shape[1])
    return (channel_weights.view(1, -1, 1, 1, 1) * (predicted - target.detach()).square()).mean()


def approximate_penalty(logits: Tensor, disturbed: Tensor) -> Tensor:
    """mean (D(x) - D(x + sigma n))^2: approximate R1 on real, R2 on generated frames (APT, arXiv 2501.08316, eq. 4).

    For small sigma it tends to sigma^2 times the mean squared norm of the gradient, `exact_penalty`.
    """
    require_shape("disturbed", disturbed, *logits.shape)
    return (logits - disturbed).square().mean()


def exact_penalty(logits: Tensor, frames: Tensor) -> Tensor:
    """mean over all logits of |d logit / d frames|^2, frames [B, ...] with gradients recorded: exact R1 or R2.

    logits [B, ...] of these frames. One backward pass per logit of a row, each of them differentiable itself: for small
    models and for tests. Raises ValueError for other shapes and frames that record no gradient.
    """
    require(logits.ndim >= 2, "logits", "shape [B, ...] with a dimension of logits", list(logits.shape))
    require_shape("frames", frames, len(logits), *frames.shape[1:])
    require(frames.requires_grad, "frames", "recorded gradients (requires_grad)", "none")
    total = torch.zeros((), dtype=logits.dtype, device=logits.device)
    columns = logits.flatten(1)
    for column in columns.unbind(1):
        (gradient,) = torch.autograd.grad(column.sum(), frames, create_graph=True)
        total = total + gradient.square().sum() / len(columns)
    return total / columns.shape[1]
