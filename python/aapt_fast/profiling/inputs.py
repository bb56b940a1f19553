# SPDX-License-Identifier: Apache-2.0
"""Random images, controls and prompts that fit a model, the same ones each time."""

from __future__ import annotations

import torch
from torch import Tensor

from aapt_fast.models.stream_model import StreamModel
from aapt_fast.streaming.controls import entry_shape


def random_image(model: StreamModel, seed: int = 2) -> Tensor:
    """Make an image [3, H, W] in -1..1."""
    return torch.rand(3, *model.video_size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def random_controls(model: StreamModel, count: int, seed: int = 3) -> list[Tensor] | list[None]:
    """Make one control per step: [4, J, 3] poses, [4, C, h, w] maps, or None.

    They are those of a player of the model's world, if it has one, and random numbers otherwise.
    """
    config = model.control
    if config is None:
        return [None] * count
    if model.has_world:
        first = model.world.first_frame(seed, 0, model.video_size[0])
        player = model.world.player(first, seed=seed)
        return [player.next(config.entries) for _ in range(count)]
    entry = entry_shape(config, model.grid)
    return list(torch.rand(count, 4, *entry, generator=torch.Generator().manual_seed(seed)))


def random_prompt(model: StreamModel, length: int = 5, seed: int = 4) -> Tensor | None:
    """Make embeddings [L, text_width], or None for a model without a text stream."""
    width = model.config.text_width
    return torch.randn(length, width, generator=torch.Generator().manual_seed(seed)) if width else None
