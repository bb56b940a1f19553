# SPDX-License-Identifier: Apache-2.0
"""Learning-rate schedule, timestep sampling, and the straight path from data to noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from aapt_fast.errors import require_shape
from aapt_fast.models.aapt.sampling import shift_time


def warm_cosine(step: int, steps: int, warm_up: int = 50, floor: float = 0.03) -> float:
    """Learning-rate factor: a linear warm-up, then a cosine down to `floor`."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / warm_up) * (floor + (1 - floor) * cosine)


def sample_timesteps(batch: int, shift: float, share_at_one: float) -> Tensor:
    """t [B]: uniform, then warped by `shift` (AAPT section 2.2); a share of the clips sits at exactly t = 1.

    t = 1 is where the one-evaluation generator lives.
    """
    t = shift_time(torch.rand(batch), shift)
    return torch.where(torch.rand(batch) < share_at_one, torch.ones(batch), t)


def wide(t: Tensor) -> Tensor:
    """t [B] -> [B, 1, 1, 1, 1], to go with frames [B, C, F, h, w]."""
    return t.view(-1, 1, 1, 1, 1)


def add_noise(clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 - t) x0 + t eps for frames [B, C, F, h, w] and t [B]. Raises ValueError for other shapes."""
    require_shape("clean", clean, "B", "C", "F", "h", "w")
    require_shape("noise", noise, *clean.shape)
    require_shape("t", t, len(clean))
    return (1 - wide(t)) * clean + wide(t) * noise
