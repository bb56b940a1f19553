# SPDX-License-Identifier: Apache-2.0
"""Live control of the camera: by actions, by speeds, or by the data policy as a medley."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from aapt_fast.errors import require, require_integer
from aapt_fast.limits import require_memory
from aapt_fast.not_copied import NotCopied
from aapt_fast.worlds.rooms.camera import CHANNELS, Camera, control_maps
from aapt_fast.worlds.rooms.house import make_house
from aapt_fast.worlds.rooms.policy import DECIDES, Drifter, Guide
from aapt_fast.worlds.rooms.renderer import Renderer
from aapt_fast.worlds.rooms.sight import decided_house
from aapt_fast.worlds.rooms.walker import ACTIONS, AXES, Walker
from aapt_fast.worlds.world import MEDLEY, PART_FRAMES, FirstFrame, Part

MANY_FRAMES = 10_000  # in one call, above which it is worth the time to ask the system for its memory


class RoomsPlayer(NotCopied):
    """Live camera for a stream that starts from the picture `first`; see `worlds.world.Player`.

    In a known house a medley stops at walls, things and closed doors, as clips do. Once a person has played an action
    or steered, only walls, doors and the things in the first picture stop the camera: all else is for chance to decide,
    and the model may show something other than the house has.
    """

    no_copy = (
        "player: it cannot be copied or pickled, as its motions come one after the other; another one made with the "
        "same arguments plays the same"
    )

    def __init__(self, script: Sequence[Part], seed: int, first: FirstFrame, cells: int, camera: Camera) -> None:
        pose = np.array([0, 1.5, 0, 0, 0, 0] if first.pose is None else read_pose(first.pose))
        house = None if first.scene is None or first.pose is None else make_house(first.scene)
        self._walker, self._house, self._seed = Walker(house, pose), house, seed
        self._medley = Drifter(seed) if house is None else Guide(self._walker, seed)
        self._first = pose
        self._parts, self._cells, self._camera = list(script), cells, camera
        self._speeds = np.zeros(6)
        self._poses, self._doors = self._walker.pose[None].copy(), self._walker.doors[None].copy()
        self._renderer: Renderer | None = None
        self._begin_part()
        self.frames = 0

    def __repr__(self) -> str:
        return f"RoomsPlayer(world rooms: {self.action} now, {self.frames} video frames so far)"

    def play(self, action: str) -> None:
        """Leave the script for an action of the world, from the next video frame on. Raises ValueError for others."""
        require(action in ACTIONS, "action", " | ".join(ACTIONS), action)
        self._parts = [Part(action)]
        self._begin_part()

    def steer(self, speeds: Sequence[float]) -> None:
        """Leave the script for six speeds in -1..1: right, up, forwards, pitch, yaw, roll, as in `walker.AXES`.

        Raises ValueError for anything else.
        """
        values = np.array(speeds, float)
        fits = values.shape == (len(AXES),) and bool((np.abs(values) <= 1).all())
        require(fits, "speeds", f"{len(AXES)} numbers in -1..1: {', '.join(AXES)}", speeds)
        self._parts, self._left, self.action, self._speeds = [], math.inf, "steer", values
        self._pass_what_is_not_decided()

    def next(self, frames: int) -> Tensor:
        """Control maps [frames, 6, h, w] of the next video frames.

        Raises TypeError for a number that is no integer, ValueError for fewer than 0 and for more than fit into memory.
        """
        require_integer("frames", frames)
        require(frames >= 0, "frames", "0 or more", frames)
        if frames > MANY_FRAMES:
            require_memory("frames", 24 * CHANNELS * self._cells**2 * int(frames))
        poses, doors = [self._walker.pose.copy()], []
        for _ in range(frames):
            if self._left <= 0:
                self._parts.pop(0)
                self._begin_part()
            if self.action == MEDLEY and self.frames % DECIDES == 0:
                self._speeds = self._medley.decide()
            self._walker.step(self._speeds)
            self._left -= 1
            self.frames += 1
            poses.append(self._walker.pose.copy())
            doors.append(self._walker.doors.copy())
        self._poses, self._doors = np.array(poses[1:]).reshape(-1, 6), np.array(doors)
        return control_maps(np.array(poses), self._cells, self._camera)[1:]

    def truth(self, size: int) -> Tensor | None:
        """True video [frames, 3, size, size] in 0..1 of the last `next`; None if the house is not known."""
        if self._house is None:
            return None
        if self._renderer is None or self._renderer.size != size:
            self._renderer = Renderer(self._house, size, self._camera)
        shown = [self._renderer.render(*each).image for each in zip(self._poses, self._doors, strict=True)]
        video = torch.from_numpy(np.array(shown, np.uint8).reshape(-1, size, size, 3))
        return video.permute(0, 3, 1, 2).float() / 255

    def _begin_part(self) -> None:
        part = self._parts[0]
        self.action = part.action
        last = len(self._parts) == 1
        self._left = float(part.frames or PART_FRAMES) if not last else math.inf
        self._speeds = np.array(ACTIONS.get(part.action, np.zeros(6)), float)
        if part.action != MEDLEY:
            self._pass_what_is_not_decided()

    def _pass_what_is_not_decided(self) -> None:
        if self._house is not None and self._walker.house is self._house:
            closed = np.tile(np.array([0.0, 1.0]), (len(self._house.plan.doors), 1))
            self._walker.house = decided_house(self._house, self._first, closed, self._camera)
            self._medley = Guide(self._walker, self._seed)


def read_pose(pose: Sequence[float]) -> tuple[float, ...]:
    """The six numbers of a camera's pose; raises ValueError for others."""
    fits = len(pose) == 6 and all(isinstance(each, int | float) and math.isfinite(each) for each in pose)
    require(fits, "pose", "six finite numbers: x, y, z, yaw, pitch, roll", pose)
    return tuple(float(each) for each in pose)
