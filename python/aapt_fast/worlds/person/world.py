# SPDX-License-Identifier: Apache-2.0
"""The person world as a `World`: the person and the motion of every clip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from aapt_fast.errors import require, require_seed, require_type
from aapt_fast.worlds.person.identity import make_identity
from aapt_fast.worlds.person.motions import MOTIONS
from aapt_fast.worlds.person.plausible import odd_poses
from aapt_fast.worlds.person.players import PersonPlayer, random_motion, read_pose
from aapt_fast.worlds.person.renderer import render
from aapt_fast.worlds.person.skeleton import draw_skeleton, forward_kinematics, mirror, pose_points
from aapt_fast.worlds.script import read_script
from aapt_fast.worlds.world import MEDLEY, Clip, FirstFrame, Oddity, clip_seed

GOLDEN_RATIO = 0.6180339887498949


@dataclass(frozen=True)
class PersonWorld:
    """Persons in rooms. `identities` = 0 gives every clip a person and room of its own, n > 0 a gallery of n of them.

    `fade_in` is the share of clips that begin as live control does: in a pose which the
    body leaves at once for another motion. All others begin in the middle of a motion.
    """

    identities: int = 0
    fade_in: float = 0.0

    name: ClassVar[str] = "person"
    has_chance: ClassVar[bool] = False
    actions: ClassVar[tuple[str, ...]] = tuple(MOTIONS)

    def __post_init__(self) -> None:
        require(self.identities >= 0, "identities", "0 or more", self.identities)
        require(0 <= self.fade_in <= 1, "fade_in", "a share, 0..1", self.fade_in)

    def settings(self) -> dict[str, Any]:
        """The fields. Fields that are newer than the first rendered sets are left out at their defaults."""
        return {"identities": self.identities} | ({"fade_in": self.fade_in} if self.fade_in else {})

    def scene(self, seed: int, clip: int) -> int:
        """The person and room of a clip; those of a gallery are 0, 1, 2, ..."""
        return clip % self.identities if self.identities else 1_000_000 * (seed + 1) + clip

    def motion(self, seed: int, clip: int, frames: int) -> Tensor:
        """Pose angles [frames, 17] of the person in a clip."""
        own = clip_seed(seed, clip)
        fades_in = clip * GOLDEN_RATIO % 1 < self.fade_in  # spreads evenly over clips and over identities
        start = random_motion(1, own + 500_000_003)[0] if fades_in else None
        return random_motion(frames, own, start)

    def clip(self, seed: int, clip: int, frames: int, size: int, future: int = 0) -> Clip:
        """Video uint8 [frames, size, size, 3] and image points [frames, 19, 3]. All futures are the same."""
        return self._film(seed, clip, self.motion(seed, clip, frames), size)

    def mirrored(self, seed: int, clip: int, frames: int, size: int) -> Clip:
        """The same person, moving mirrored after the first frame in the same, unmirrored room."""
        angles = self.motion(seed, clip, frames)
        return self._film(seed, clip, torch.cat([angles[:1], mirror(angles[1:])]), size)

    def first_frame(self, seed: int, clip: int, size: int) -> FirstFrame:
        """The first video frame, its image points, its pose angles and its scene."""
        angles = self.motion(seed, clip, 1)
        pose = tuple(round(angle, 6) for angle in angles[0].tolist())
        video = self._film(seed, clip, angles, size).video
        return self.from_gallery(video[0].numpy(), pose, self.scene(seed, clip))

    def from_gallery(self, image: np.ndarray, pose: tuple[float, ...], scene: int | None) -> FirstFrame:
        """A first frame of the picture uint8 [H, W, 3] and its 17 pose angles; raises ValueError for other poses."""
        return FirstFrame(image, pose_points(read_pose(pose, "pose")[None])[0], pose, scene)

    def draw_controls(self, controls: Tensor, size: int) -> Tensor:
        """Stick figures [N, 3, size, size] in 0..1 of the points [N, 19, 3]."""
        return draw_skeleton(controls, size)

    def odd_controls(self, controls: Tensor) -> Oddity | None:
        """The fault of image points [N, 19, 3] that no body of this world can have; None if all are possible."""
        return odd_poses(controls)

    def player(self, first: FirstFrame, script: str = MEDLEY, seed: int = 0) -> PersonPlayer:
        """Live poses of the motions in a script such as "walk:48,wave", or of a medley, from the pose of `first` on.

        A model sees the first picture in its first step only, and the person stays in its pose for that step.
        """
        require_type("first", first, FirstFrame)
        require_seed(seed)
        return PersonPlayer(read_script(script, self.actions), seed, first)

    def _film(self, seed: int, clip: int, angles: Tensor, size: int) -> Clip:
        """A clip whose person moves by the poses `angles` [T, 17]."""
        joints, identity = forward_kinematics(angles), make_identity(self.scene(seed, clip))
        video = render(joints, identity, size)
        return Clip((video * 255 + 0.5).byte().permute(0, 2, 3, 1), pose_points(angles))
