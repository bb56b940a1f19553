# SPDX-License-Identifier: Apache-2.0
"""This package with the geometry of Self-Forcing block by block: Wan 2.1 1.3B and its VAE, random weights."""

from __future__ import annotations

import torch
from torch import Tensor

from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.wan import WanVAE, WanVAEConfig
from aapt_fast.models.wan.config import WanConfig
from aapt_fast.models.wan.sampling import FewStepSampler
from aapt_fast.models.wan.transformer import WanTransformer
from aapt_fast.ops.window import WindowRule
from aapt_fast.streaming.session import StreamSession
from bench.peers.peer import Geometry, Step

CELL = 8
BLOCK, IN_SIGHT = 3, 21
WAN_1_3B, WAN_2_1_VAE = WanConfig(), WanVAEConfig()


class Ours:
    """Blocks of three latent frames; other configurations than the published ones try the adapter out."""

    filling = IN_SIGHT // BLOCK + 1

    def __init__(
        self,
        _: str | None = None,
        *,
        config: WanConfig = WAN_1_3B,
        vae: WanVAEConfig = WAN_2_1_VAE,
        grid: tuple[int, int] = (60, 104),
    ) -> None:
        self._config, self._vae, self._grid = config, vae, grid
        self.geometry = Geometry(CELL * grid[1], CELL * grid[0], 4 * BLOCK, BLOCK, IN_SIGHT, 5, "Wan 2.1")

    def load(self, device: torch.device) -> Step:
        """Make random weights, in bfloat16 on a GPU, and begin a stream."""
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        torch.manual_seed(0)
        with device:
            generator, vae = WanTransformer(self._config).to(dtype), WanVAE(self._vae).to(dtype)
        model = StreamModel(generator.eval().requires_grad_(False), vae.eval().requires_grad_(False), grid=self._grid)
        prompt = torch.randn(self._config.text_length, self._config.text_width, device=device, dtype=dtype)
        sampler = FewStepSampler(window=WindowRule(BLOCK, window=IN_SIGHT - BLOCK))
        session = StreamSession(model, prompt=prompt, sampler=sampler)

        def step() -> Tensor:
            return session.step()

        return step
