# SPDX-License-Identifier: Apache-2.0
"""Self-Forcing (github.com/guandeh17/Self-Forcing, read at 33593df): Wan 2.1 1.3B, whole clips. Never run.

Its `CausalInferencePipeline.inference` makes a clip of 21 latent frames from a prompt, block by block, and decodes it
at the end: a step is such a clip. It expects its folder as the present one, with the checkpoints of its README in it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from bench.peers.peer import PROMPT, Geometry, Step, imported

SYSTEM = "Self-Forcing"
LATENTS = (1, 21, 16, 60, 104)
CONFIGS = ("configs/default_config.yaml", "configs/self_forcing_dmd.yaml")
WEIGHTS = "checkpoints/self_forcing_dmd.pt"


class SelfForcing:
    """Clips of the checkout in a folder."""

    geometry = Geometry(832, 480, 81, 21, 21, 5, "Wan 2.1", whole_clip=True)
    filling = 1

    def __init__(self, folder: str | None = None) -> None:
        self._folder = Path(folder or "Self-Forcing")

    def load(self, device: torch.device) -> Step:
        """Load the few-step pipeline with the averaged weights. Raises ImportError without the checkout."""
        if not (self._folder / "pipeline" / "causal_inference.py").is_file():
            raise ImportError(f"{SYSTEM} is not installed: expected a folder with its checkout, got {self._folder}")
        with inside(self._folder):
            settings = imported(SYSTEM, "omegaconf").OmegaConf
            config = settings.merge(*(settings.load(name) for name in CONFIGS))
            pipeline = imported(SYSTEM, "pipeline").CausalInferencePipeline(config, device=device)
            weights = torch.load(WEIGHTS, map_location="cpu", weights_only=True)
            pipeline.generator.load_state_dict(weights["generator_ema"])
        pipeline = pipeline.to(device=device, dtype=torch.bfloat16)

        @torch.no_grad()
        def step() -> Tensor:
            noise = torch.randn(LATENTS, device=device, dtype=torch.bfloat16)
            video: Tensor = pipeline.inference(noise=noise, text_prompts=[PROMPT])
            pipeline.vae.model.clear_cache()
            return (255 * video[0]).to(torch.uint8)

        return step


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Make a folder the present one, and the first that modules come from; the latter for good."""
    before = Path.cwd()
    sys.path.insert(0, str(folder.resolve()))
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
