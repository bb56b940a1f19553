# SPDX-License-Identifier: Apache-2.0
"""Protocol of a system that `bench.bench_peers` times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor

PROMPT = "A red fox walks through fresh snow in a quiet forest at dawn, seen from the side."
Step = Callable[[], Tensor]
"""Makes the next video frames: a tensor [F, H, W, 3] or [F, 3, H, W], on any device."""


@dataclass(frozen=True)
class Geometry:
    """Video that one step makes. Times of different geometries are no ratio.

    `frames_in_sight` are latent frames that attention sees, those of the step included, and `nfe` evaluations of the
    network per block of latent frames; None if the system does not tell.
    """

    width: int
    height: int
    video_frames: int
    latent_frames: int
    frames_in_sight: int | None
    nfe: int | None
    decoder: str
    whole_clip: bool = False
    """True if the public interface makes whole clips only: a step begins with the prompt and ends with the clip."""


class Peer(Protocol):
    """A system at one geometry."""

    geometry: Geometry
    filling: int
    """Steps until the past frames in sight are as many as they will be."""

    def load(self, device: torch.device) -> Step:
        """Load the system and begin a stream. Raises ImportError, in one sentence, where it is not installed."""
        ...


def imported(system: str, module: str) -> Any:
    """Import a module of a system. Raises ImportError with one sentence where the system is not installed."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        raise ImportError(f"{system} is not installed: expected the module {module}, got no {missing}") from error


def to_host(frames: Tensor, geometry: Geometry) -> Tensor:
    """Copy the frames of a step to the host. Raises ValueError for others than the geometry has."""
    expected = {
        (geometry.video_frames, geometry.height, geometry.width, 3),
        (geometry.video_frames, 3, geometry.height, geometry.width),
    }
    if tuple(frames.shape) not in expected:
        wanted = f"{geometry.video_frames} video frames of {geometry.width}x{geometry.height}"
        raise ValueError(f"frames: expected {wanted}, got a tensor {list(frames.shape)}")
    return frames.cpu()
