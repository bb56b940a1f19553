# SPDX-License-Identifier: Apache-2.0
"""FlashDreams (github.com/NVIDIA/flashdreams) with its recipe of Self-Forcing: Wan 2.1 1.3B block by block. Never run.

Read: `StreamInferencePipeline` at 060e4fb, `integrations/self_forcing` at 12ba6f2 and 0780b80.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from bench.peers.peer import PROMPT, Geometry, Step, imported

SYSTEM = "FlashDreams"
CELL = 8


class FlashDreams:
    """Blocks of three latent frames of its recipe, or of another one of `self_forcing.config` by name."""

    geometry = Geometry(832, 480, 12, 3, 21, 5, "Wan 2.1")
    filling = 8  # blocks of three in a window of 21, and one whose first video frames are missing

    def __init__(self, recipe: str | None = None) -> None:
        self._recipe = recipe or "PIPELINE_WAN21_T2V_1PT3B"

    def load(self, device: torch.device) -> Step:
        """Set up the recipe without its profiler, and begin a stream. Raises ImportError where it is not installed."""
        derive_config = imported(SYSTEM, "flashdreams.infra.config").derive_config
        recipe = getattr(imported(SYSTEM, "self_forcing.config"), self._recipe)
        pipeline = derive_config(recipe, enable_sync_and_profile=False).setup().to(device=device).eval()
        height, width = self.geometry.height // CELL, self.geometry.width // CELL
        cache = pipeline.initialize_cache(text=[PROMPT], image=None, height=height, width=width)
        numbers = itertools.count()

        def step() -> Tensor:
            number = next(numbers)
            video: Tensor = pipeline.generate(autoregressive_index=number, cache=cache)
            pipeline.finalize(autoregressive_index=number, cache=cache)
            return (127.5 * (video + 1)).clamp(0, 255).to(torch.uint8)

        return step
