# SPDX-License-Identifier: Apache-2.0
"""Waypoint 1.5 by Overworld's World Engine (github.com/Overworldai/world_engine, read at 0085799). Never run.

A step is `WorldEngine.gen_frame`: one control, four video frames of 1280x720 from one latent frame. Its context of 512
frames is not filled before the timing, which is in its favour.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from bench.peers.peer import Geometry, Step, imported

SYSTEM = "World Engine (Waypoint)"
MOUSE = (0.1, 0.0)


class Waypoint:
    """A stream of a Waypoint 1.5 model at 1280x720, by its name or folder."""

    geometry = Geometry(1280, 720, 4, 1, None, None, "Waypoint's own")
    filling = 8

    def __init__(self, model: str | None = None) -> None:
        self._model = model or "Overworld/Waypoint-1.5-1B"

    def load(self, device: torch.device) -> Step:
        """Load the model; it compiles itself in the first steps. Raises ImportError where it is not installed."""
        package = imported(SYSTEM, "world_engine")
        engine = package.WorldEngine(self._model, device=str(device))
        numbers = itertools.count()

        def step() -> Tensor:
            turn = -1 if next(numbers) % 2 else 1
            video: Tensor = engine.gen_frame(ctrl=package.CtrlInput(mouse=(turn * MOUSE[0], MOUSE[1])))
            return video

        return step
