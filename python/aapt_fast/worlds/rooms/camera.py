# SPDX-License-Identifier: Apache-2.0
"""The camera: its pose, its rays, and the control maps that say how it moved since the video frame before.

A pose is (x, y, z, yaw, pitch, roll), metres and radians. The camera's own axes are right, up, forwards; yaw turns it
to the right, pitch upwards, roll its right side down.

A control map has six channels at latent resolution: origin and direction of the ray through the middle of every latent
cell, in the axes of the camera one video frame earlier, as in AAPT. Both are measured from the rays of a camera that
stands still, and divided by `ORIGIN_UNIT` and `DIRECTION_UNIT`, so that they vary by about one and 0 means "stand".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aapt_fast.errors import require, require_shape

POSE = ("x", "y", "z", "yaw", "pitch", "roll")
ORIGIN_UNIT = 0.03  # metres that a camera moves between two video frames, roughly
DIRECTION_UNIT = 0.02  # length by which directions of unit length change between two video frames, roughly
CHANNELS = 6
FIELD_OF_VIEW = 75.0  # degrees, across a video frame


@dataclass(frozen=True)
class Camera:
    """A pinhole camera of square pictures."""

    field_of_view: float = FIELD_OF_VIEW  # degrees

    def __post_init__(self) -> None:
        require(10 <= self.field_of_view <= 150, "field_of_view", "10 to 150 degrees", self.field_of_view)

    @property
    def half(self) -> float:
        """Half the width of the picture at distance 1."""
        return math.tan(math.radians(self.field_of_view) / 2)

    def places(self, cells: int) -> np.ndarray:
        """x at distance 1 of the middles of so many cells from left to right, [cells]; -y of those from the top."""
        return (((np.arange(cells) + 0.5) / cells * 2 - 1) * self.half).astype(np.float64)

    def rays(self, cells: int) -> Tensor:
        """Unit directions float32 [3, cells, cells] (right, up, forwards) through cells; row 0 is the top one."""
        place = torch.from_numpy(self.places(cells))
        y, x = torch.meshgrid(-place, place, indexing="ij")
        return torch.nn.functional.normalize(torch.stack([x, y, torch.ones_like(x)]), dim=0).float()

    def project(self, points: np.ndarray, pose: np.ndarray) -> np.ndarray:
        """x and y as fractions of the frame, and depth in metres, [N, 3], of points [N, 3] seen from `pose` [6]."""
        seen = (points - pose[:3]) @ rotation(pose)
        return np.stack(
            [0.5 + seen[:, 0] / seen[:, 2] / self.half / 2, 0.5 - seen[:, 1] / seen[:, 2] / self.half / 2, seen[:, 2]],
            axis=1,
        )


def rotation(pose: np.ndarray) -> np.ndarray:
    """Columns right, up and forwards [..., 3, 3] of the camera at poses [..., 6], in the axes of the house."""
    yaw, pitch, roll = pose[..., 3], pose[..., 4], pose[..., 5]
    sin_y, cos_y, sin_p, cos_p = np.sin(yaw), np.cos(yaw), np.sin(pitch), np.cos(pitch)
    right = np.stack([cos_y, np.zeros_like(yaw), -sin_y], axis=-1)
    forwards = np.stack([sin_y * cos_p, sin_p, cos_y * cos_p], axis=-1)
    up = np.cross(forwards, right)
    sin_r, cos_r = np.sin(roll)[..., None], np.cos(roll)[..., None]
    return np.stack([right * cos_r - up * sin_r, up * cos_r + right * sin_r, forwards], axis=-1)


def motions(poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Motion from each pose [T, 6] to the next, in its axes: [T - 1, 3] metres, rotations [T - 1, 3, 3]."""
    turned = rotation(poses)
    back = turned[:-1].transpose(0, 2, 1)
    moved = (back @ (poses[1:, :3] - poses[:-1, :3])[..., None])[..., 0]
    return moved, back @ turned[1:]


def control_maps(poses: np.ndarray, cells: int, camera: Camera | None = None) -> Tensor:
    """Control maps float32 [T, 6, cells, cells] of poses [T, 6]; those of the first pose, which follows none, are 0."""
    moved, turned = motions(poses)
    still = (camera or Camera()).rays(cells).double()
    first = torch.zeros(1, CHANNELS, cells, cells)
    if len(poses) == 1:
        return first
    origins = torch.from_numpy(moved)[:, :, None, None].expand(-1, -1, cells, cells) / ORIGIN_UNIT
    directions = torch.einsum("tij,jhw->tihw", torch.from_numpy(turned), still) - still
    return torch.cat([first, torch.cat([origins, directions / DIRECTION_UNIT], dim=1).float()])


def read_maps(maps: Tensor, camera: Camera | None = None) -> tuple[Tensor, Tensor]:
    """Motion that control maps [N, 6, h, h] ask for: metres [N, 3], and rotations [N, 3, 3]. Inverts `control_maps`.

    The rotation is the one that fits the directions best, so that maps with a little noise can be read too.
    Raises ValueError for another shape.
    """
    require_shape("maps", maps, "N", CHANNELS, "h", maps.shape[-2])
    still = (camera or Camera()).rays(maps.shape[-1]).double().flatten(1)
    moved = maps[:, :3].double().mean((2, 3)) * ORIGIN_UNIT
    directions = maps[:, 3:].double().flatten(2) * DIRECTION_UNIT + still
    left, _, right = torch.linalg.svd(directions @ still.T)
    flip = torch.ones(len(maps), 3, dtype=torch.float64)
    flip[:, 2] = torch.linalg.det(left @ right)
    return moved.float(), (left * flip[:, None, :] @ right).float()


def turn_angles(turned: Tensor) -> Tensor:
    """Yaw to the right, pitch upwards and roll [N, 3] in radians of rotations [N, 3, 3], for small ones."""
    yaw = torch.atan2(turned[:, 0, 2], turned[:, 2, 2])
    pitch = torch.asin(turned[:, 1, 2].clamp(-1, 1))
    roll = torch.atan2(-turned[:, 1, 0], turned[:, 1, 1])
    return torch.stack([yaw, pitch, roll], dim=1)
