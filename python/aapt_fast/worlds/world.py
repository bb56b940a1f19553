# SPDX-License-Identifier: Apache-2.0
"""Protocol of a world: clips with exact truth for training and evaluation, first frames and live control for streams.

A clip is named by the seed of its set and its number in it, and is the same whenever it is made. A control has one
entry per video frame, of the kind that the models of the world take: a pose [J, 3], or maps [C, h, w] at the resolution
of the latent frames. docs/how-to/add-a-world.md says which files a new world needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

FPS = 24.0  # video frames per second of every world
PART_FRAMES = 48  # video frames of a part of a script that gives none and is not the last
MEDLEY = "medley"  # the name of an endless mixture of a world's actions


@dataclass(frozen=True)
class Clip:
    """T video frames and their controls."""

    video: Tensor  # uint8 [T, H, W, 3]
    controls: Tensor  # float32 [T, J, 3] or [T, C, h, w]


@dataclass(frozen=True)
class FirstFrame:
    """The picture that a stream starts from, and the state of the world that it shows."""

    image: np.ndarray  # uint8 [H, W, 3]
    pose: tuple[float, ...] | None = None  # numbers that only the world reads; None: a picture from elsewhere
    scene: int | None = None  # None: pose and scene do not say the whole picture


@dataclass(frozen=True)
class Part:
    """One action of a script, for `frames` video frames (None: `PART_FRAMES`, and without end for the last part)."""

    action: str
    frames: int | None = None


class Player(Protocol):
    """Live control of one stream."""

    @property
    def first_control(self) -> Tensor | None:
        """The control [J, 3] or [C, h, w] that the first picture shows; None for a picture from elsewhere."""

    def next(self, frames: int) -> Tensor:
        """Controls [frames, J, 3] or [frames, C, h, w] of the next video frames."""

    def truth(self, size: int) -> Tensor | None:
        """True video [frames, 3, size, size] in 0..1 of the last `next`; None for a first picture from elsewhere."""


class World(Protocol):
    """A frozen dataclass whose fields determine its clips. Worker processes get it by pickle."""

    @property
    def name(self) -> str:
        """The key in `aapt_fast.worlds.WORLDS`."""

    @property
    def actions(self) -> tuple[str, ...]:
        """Names of what a script can ask of `play`, besides `MEDLEY`."""

    @property
    def has_chance(self) -> bool:
        """True where a clip has more futures than number 0."""

    def settings(self) -> dict[str, Any]:
        """JSON values that tell the clips of this world from those of any other; rendered sets are kept under them."""

    def scene(self, seed: int, clip: int) -> int:
        """A number that clips share whose pictures differ by controls and chance only."""

    def clip(self, seed: int, clip: int, frames: int, size: int, future: int = 0) -> Clip:
        """Clip number `clip` of the set `seed`; futures 0, 1, ... have one first video frame and the same controls."""

    def mirrored(self, seed: int, clip: int, frames: int, size: int) -> Clip | None:
        """The clip with its first frame, under mirrored controls from then on; None where nothing is controlled."""

    def first_frame(self, seed: int, clip: int, size: int) -> FirstFrame:
        """The first video frame of a clip, with the state from which `play` continues."""

    def draw_controls(self, controls: Tensor, size: int) -> Tensor:
        """Pictures [N, 3, size, size] in 0..1, for people, of the controls [N, J, 3] or [N, C, h, w]."""

    def play(self, script: tuple[Part, ...], seed: int, start: FirstFrame) -> Player:
        """Live control by a script of `actions`, or of `MEDLEY` alone, from the picture `start`."""


def clip_seed(seed: int, clip: int) -> int:
    """The seed of clip number `clip` of the set `seed`; sets with other seeds share none of the first 1e9 clips."""
    return 1_000_000_007 * (seed + 1) + clip
