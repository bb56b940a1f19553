# SPDX-License-Identifier: Apache-2.0
"""Student-forced steps over a batch of clips: each frame is made from the model's own previous one."""

from __future__ import annotations

import torch
from torch import Tensor

from aapt_fast.models.generator import Generator
from aapt_fast.models.sampler import sample_frame
from aapt_fast.ops import philox_normal


def rollout(generator: Generator, image: Tensor, controls: Tensor, seeds: Tensor, nfe: int = 1) -> Tensor:
    """Frames [B, C, n, h, w] of n steps from the image latents [B, C, 1, h, w] and controls [B, Cc, n, h, w].

    Noise comes from (seeds [B] int64, step), the same numbers that a session with that seed draws.
    """
    height, width = image.shape[-2:]
    caches = [generator.new_cache(height, width) for _ in range(nfe)]
    recycled, frames = image, []
    for step in range(1, controls.shape[2] + 1):
        noise = philox_normal(seeds, torch.full_like(seeds, step), tuple(image[0, :, 0].shape))[:, :, None]
        recycled = sample_frame(generator, noise, recycled, controls[:, :, step - 1 : step], caches)
        frames.append(recycled)
    return torch.cat(frames, dim=2)
