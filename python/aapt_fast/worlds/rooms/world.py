# SPDX-License-Identifier: Apache-2.0
"""The rooms world as a `World`: houses, a guided camera, and what chance has put behind the doors."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from aapt_fast.errors import require, require_seed, require_type
from aapt_fast.worlds.rooms.camera import CHANNELS, Camera, control_maps
from aapt_fast.worlds.rooms.drawing import draw_motions
from aapt_fast.worlds.rooms.house import House, make_house
from aapt_fast.worlds.rooms.plausible import odd_maps
from aapt_fast.worlds.rooms.players import RoomsPlayer, read_pose
from aapt_fast.worlds.rooms.policy import first_pose, guided_poses
from aapt_fast.worlds.rooms.renderer import Renderer
from aapt_fast.worlds.rooms.sight import other_future
from aapt_fast.worlds.rooms.walker import ACTIONS, MIRRORED, Walker
from aapt_fast.worlds.script import read_script
from aapt_fast.worlds.world import MEDLEY, Clip, FirstFrame, Oddity, clip_seed

VERSION = 2  # of the pictures; another number for another look


@dataclass(frozen=True)
class RoomsWorld:
    """Walks through houses. `houses` = 0 gives every clip a house of its own, n > 0 all clips n of them.

    `cell` is the width in pixels of a latent cell, which the control maps have one ray for: that of the codec.
    `samples` = 2 renders edges of four rays each, at half the speed.
    """

    houses: int = 0
    cell: int = 16
    samples: int = 1
    camera: Camera = Camera()

    actions: ClassVar[tuple[str, ...]] = tuple(ACTIONS)
    has_chance: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(self.houses >= 0, "houses", "0 or more", self.houses)
        require(self.cell >= 1, "cell", "at least 1 pixel", self.cell)
        require(self.samples in (1, 2), "samples", "1 or 2", self.samples)

    @property
    def name(self) -> str:
        """`rooms` for cells of 16 pixels; `rooms-8` for those of 8, and so on."""
        return "rooms" if self.cell == 16 else f"rooms-{self.cell}"

    def settings(self) -> dict[str, Any]:
        """The fields, and the version of the pictures."""
        return {"world": self.name, "version": VERSION, **dataclasses.asdict(self)}

    def scene(self, seed: int, clip: int) -> int:
        """The house of a clip; those of `houses` are 0, 1, 2, ..."""
        return clip % self.houses if self.houses else 1_000_000 * (seed + 1) + clip

    def clip(self, seed: int, clip: int, frames: int, size: int, future: int = 0) -> Clip:
        """Video uint8 [frames, size, size, 3] and control maps float32 [frames, 6, size / cell, size / cell]."""
        return self._film(seed, clip, frames, size, future)

    def mirrored(self, seed: int, clip: int, frames: int, size: int) -> Clip:
        """The same house from the same first frame, where the camera turns and steps to the other side each time.

        It stops at walls as every camera does; the controls say how it really moves.
        """
        return self._film(seed, clip, frames, size, 0, MIRRORED)

    def first_frame(self, seed: int, clip: int, size: int) -> FirstFrame:
        """The first video frame, its control (a camera that stands), its pose and its house."""
        video = self._film(seed, clip, 1, size, 0).video
        pose = self._start(seed, clip, self._house(seed, clip)).pose
        return self.from_gallery(
            video[0].numpy(), tuple(round(float(each), 6) for each in pose), self.scene(seed, clip)
        )

    def from_gallery(self, image: np.ndarray, pose: tuple[float, ...], scene: int | None) -> FirstFrame:
        """A first frame of the picture uint8 [H, W, 3] and six numbers of a pose; raises ValueError for others."""
        cells = self._cells(len(image))
        return FirstFrame(image, torch.zeros(CHANNELS, cells, cells), read_pose(pose), scene)

    def draw_controls(self, controls: Tensor, size: int) -> Tensor:
        """Pictures [N, 3, size, size] in 0..1 of the motions that control maps [N, 6, h, w] ask for."""
        return draw_motions(controls, size, self.camera)

    def odd_controls(self, controls: Tensor) -> Oddity | None:
        """The fault of control maps [N, 6, h, w] that no camera of this world can have; None if all are possible."""
        return odd_maps(controls, self.camera)

    def player(self, first: FirstFrame, script: str = MEDLEY, seed: int = 0) -> RoomsPlayer:
        """Live control maps of the actions in a script such as "forward:48,turn_left", or of a medley, from `first` on.

        Without its pose and scene nothing stops the camera.
        """
        require_type("first", first, FirstFrame)
        require_seed(seed)
        control = None if first.control is None else torch.as_tensor(first.control)
        cells = self._cells(_width(first.image)) if control is None else control.shape[-1]
        return RoomsPlayer(read_script(script, self.actions), seed, first, cells, self.camera)

    def _house(self, seed: int, clip: int) -> House:
        return make_house(self.scene(seed, clip))

    def _start(self, seed: int, clip: int, house: House) -> Walker:
        return Walker(house, first_pose(house, clip_seed(seed, clip)))

    def _cells(self, size: int) -> int:
        require(size % self.cell == 0, "size", f"a multiple of the latent cell, {self.cell} pixels", size)
        return size // self.cell

    def _film(
        self, seed: int, clip: int, frames: int, size: int, future: int, mirror: np.ndarray | None = None
    ) -> Clip:
        require(future >= 0, "future", "0, 1, 2, ...", future)
        cells, house = self._cells(size), self._house(seed, clip)
        walker = self._start(seed, clip, house)
        poses, doors = guided_poses(walker, clip_seed(seed, clip), frames, mirror)
        shown = other_future(house, self.scene(seed, clip), future, poses, doors[0], self.camera)
        renderer = Renderer(shown, size, self.camera, self.samples)
        video = np.stack([renderer.render(pose, opened).image for pose, opened in zip(poses, doors, strict=True)])
        return Clip(torch.from_numpy(video), control_maps(poses, cells, self.camera))


def _width(image: object) -> int:
    from aapt_fast.media.first_picture import as_picture, picture_size

    return picture_size(as_picture(image))[1]
