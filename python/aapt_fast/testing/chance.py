# SPDX-License-Identifier: Apache-2.0
"""The smallest world in which chance has a part: pictures of squares that turn into others, no two futures alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aapt_fast.worlds.world import Clip, clip_seed

SQUARES = 8  # per side of a picture
PARTING = 12  # video frames within which a clip has turned into another picture


@dataclass(frozen=True)
class ChanceWorld:
    """Clips that begin with one picture and fade into one of endlessly many others; `step` is the grey levels' unit."""

    step: int = 1
    name = "chance"
    has_chance = True

    def scene(self, seed: int, clip: int) -> int:
        """Every clip has its own."""
        return clip

    def settings(self) -> dict[str, Any]:
        """Name and field."""
        return {"world": self.name, "step": self.step}

    def clip(self, seed: int, clip: int, frames: int, size: int, future: int = 0) -> Clip:
        """Video uint8 [frames, size, size, 3], in frame 0 the same for all futures; controls are zeros."""
        own = clip_seed(seed, clip)
        first, last = self._picture(own, size), self._picture(own + 7919 * (future + 1), size)
        share = (torch.arange(frames) / PARTING).clamp(max=1).view(-1, 1, 1, 1)
        video = (1 - share) * first + share * last
        return Clip((video / self.step).round().mul(self.step).clamp(0, 255).byte(), torch.zeros(frames, 1, 2, 2))

    def _picture(self, seed: int, size: int) -> Tensor:
        drawn = torch.randint(256, (SQUARES, SQUARES, 3), generator=torch.Generator().manual_seed(seed)).float()
        side = size // SQUARES
        return drawn.repeat_interleave(side, 0).repeat_interleave(side, 1)
