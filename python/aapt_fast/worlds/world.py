# SPDX-License-Identifier: Apache-2.0
"""Protocol of a world: clips with exact truth for training and evaluation, first frames and live control for streams.

A clip is named by the seed of its set and its number in it, and is the same whenever it is made. A control has one
entry per video frame, of the kind that the models of the world take: a pose [J, 3], or maps [C, h, w] at the resolution
of the latent frames. docs/how-to/add-a-world.md says which files a new world needs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from aapt_fast.errors import require

if TYPE_CHECKING:  # the command line reads scripts of motions without torch
    from torch import Tensor

FPS = 24.0  # video frames per second of every world
PART_FRAMES = 48  # video frames of a part of a script that gives none and is not the last
MEDLEY = "medley"  # the name of an endless mixture of a world's actions
NEEDS_IMAGE = "an image: it is the recycled frame of the first step"


@dataclass(frozen=True)
class Clip:
    """T video frames and their controls."""

    video: Tensor  # uint8 [T, H, W, 3]
    controls: Tensor  # float32 [T, J, 3] or [T, C, h, w]


@dataclass(frozen=True, eq=False)
class FirstFrame:
    """Picture that a stream starts from, with the control and the state of the world that it shows, if they are known.

    A picture from elsewhere has neither: `FirstFrame(image)`. With its control (the pose of the person in it, for
    example) a model keeps more of it. A picture may have any size here; a session takes one of the model's size only,
    and `aapt_fast.fit_picture` crops and scales others.

    Raises TypeError for something that is no picture, such as the path of one, which has to be opened first, and
    ValueError for a picture or a control of another shape, dtype or range.
    """

    image: np.ndarray  # uint8 [H, W, 3], or another picture that StreamSession takes, such as float [3, H, W] in -1..1
    control: Tensor | None = None  # [J, 3] or [C, h, w]; an array or lists of numbers will do
    pose: tuple[float, ...] | None = None  # numbers that only the world reads, to make a player go on from here
    scene: int | None = None  # None: pose and scene do not say the whole picture

    def __post_init__(self) -> None:
        if isinstance(self.image, str | os.PathLike):
            path = os.fspath(self.image)
            raise TypeError(f"image: expected a picture, such as PIL.Image.open({path!r}), got its path")
        require(self.image is not None, "image", NEEDS_IMAGE, None)
        from aapt_fast.media.first_picture import as_picture
        from aapt_fast.worlds.control_values import require_entry

        as_picture(self.image)
        if self.control is not None:
            require_entry("control", self.control)

    def __repr__(self) -> str:
        from aapt_fast.media.first_picture import as_picture, picture_size

        height, width = picture_size(as_picture(self.image))
        known = "a picture from elsewhere" if self.pose is None else f"scene {self.scene}, with pose"
        return f"FirstFrame({width} x {height}, {known})"


@dataclass(frozen=True)
class Oddity:
    """A fault of controls that nothing in a world can have."""

    kind: str
    """The same for all controls with this fault, so that a stream of them is reported once."""
    sentence: str

    def __str__(self) -> str:
        return self.sentence


@dataclass(frozen=True)
class Part:
    """One action of a script, for `frames` video frames (None: `PART_FRAMES`, and without end for the last part)."""

    action: str
    frames: int | None = None


class Player(Protocol):
    """Live control of one stream."""

    def play(self, action: str) -> None:
        """Leave the script for an action of the world, from the next video frame on. Raises ValueError for others."""

    def next(self, frames: int) -> Tensor:
        """Controls [frames, J, 3] or [frames, C, h, w] of the next video frames."""

    def truth(self, size: int) -> Tensor | None:
        """True video [frames, 3, size, size] in 0..1 of the last `next`; None for a first picture from elsewhere."""


@runtime_checkable
class SteeredPlayer(Player, Protocol):
    """A player of a camera that a hand can fly as well."""

    def steer(self, speeds: Sequence[float]) -> None:
        """Leave the script for six speeds in -1..1: right, up, forwards, pitch, yaw, roll.

        Raises ValueError for others.
        """


class World(Protocol):
    """A frozen dataclass whose fields determine its clips. Worker processes get it by pickle."""

    @property
    def name(self) -> str:
        """The key in `aapt_fast.worlds.WORLDS`."""

    @property
    def actions(self) -> tuple[str, ...]:
        """Names that a script for `player` may have, besides `MEDLEY`."""

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
        """The first video frame of a clip, with the state from which `player` continues."""

    def from_gallery(self, image: np.ndarray, pose: tuple[float, ...], scene: int | None) -> FirstFrame:
        """A `first_frame` again, from what the gallery of a model keeps of it: uint8 [H, W, 3], its pose and scene."""

    def draw_controls(self, controls: Tensor, size: int) -> Tensor:
        """Pictures [N, 3, size, size] in 0..1, for people, of the controls [N, J, 3] or [N, C, h, w]."""

    def odd_controls(self, controls: Tensor) -> Oddity | None:
        """The fault of controls [N, J, 3] or [N, C, h, w] that nothing in this world can have; None without any.

        Sessions call it in every step, so it has to be fast. The controls lie on the CPU.
        """

    def player(self, first: FirstFrame, script: str = MEDLEY, seed: int = 0) -> Player:
        """Live control from the picture `first` on, by a script such as "walk:48,wave" (see `read_script`).

        Raises ValueError for another script, or a seed beyond 64 bits; TypeError for arguments of another type.
        """


def clip_seed(seed: int, clip: int) -> int:
    """The seed of clip number `clip` of the set `seed`; sets with other seeds share none of the first 1e9 clips."""
    return 1_000_000_007 * (seed + 1) + clip
