# SPDX-License-Identifier: Apache-2.0
"""Losses as pure functions: tensors in, a scalar out, nothing edited."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def codec_loss(video: Tensor, truth: Tensor) -> Tensor:
    """L1 + 1/2 L1 of the image gradients + 2 MSE between videos [B, 3, T, H, W]."""
    error = video - truth
    across, down = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
    return error.abs().mean() + 0.5 * (across.abs().mean() + down.abs().mean()) + 2 * error.square().mean()


def relativistic_generator_loss(fake: Tensor, real: Tensor) -> Tensor:
    """mean softplus(-(fake - real)) over paired logits (R3GAN, arXiv 2501.05441, as a minimisation)."""
    return F.softplus(real - fake).mean()


def relativistic_discriminator_loss(fake: Tensor, real: Tensor) -> Tensor:
    """mean softplus(fake - real) over paired logits: what the discriminator minimises."""
    return F.softplus(fake - real).mean()
