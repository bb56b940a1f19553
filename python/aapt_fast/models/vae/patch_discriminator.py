# SPDX-License-Identifier: Apache-2.0
"""A three-layer patch discriminator on pairs of neighbouring video frames: sharpens the codec late in its training."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class PatchDiscriminator(nn.Module):
    """Video [B, 3, T, H, W] -> one logit per patch and neighbouring pair [B (T-1), 1, H/4, W/4]."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            spectral_norm(nn.Conv2d(6, width, 4, 2, 1)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(width, 2 * width, 4, 2, 1)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(2 * width, 2 * width, 3, 1, 1)),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 3, 1, 1),
        )

    def forward(self, video: Tensor) -> Tensor:
        """Video [B, 3, T, H, W] -> logits [B (T-1), 1, H/4, W/4]."""
        pairs = torch.cat([video[:, :, 1:], video[:, :, :-1]], dim=1).transpose(1, 2).flatten(0, 1)
        return self.layers(pairs.contiguous(memory_format=torch.channels_last))
