# SPDX-License-Identifier: Apache-2.0
"""Tapered capsules and their painting: the person is made of them.

They are painted back to front and lit as cylinders; one without length is a ball. A
coverage of `clamp(0.5 - distance)` pixels makes the edges anti-aliased without supersampling.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aapt_fast.worlds.person.skeleton import CAMERA

_LIGHT = torch.nn.functional.normalize(torch.tensor([-0.45, -0.65, 0.62]), dim=0).tolist()


@dataclass(frozen=True)
class Head:
    """A face with hair and eyes on one capsule of a body."""

    capsule: int
    radius: float  # metres
    face: Tensor  # [N, 3], the direction it looks in
    hair: Tensor  # [3] RGB


@dataclass(frozen=True)
class Shadow:
    """A soft dark spot on the floor under a body; fainter the higher that is above it."""

    ground: Tensor  # [N, 3] metres, the point of the floor
    height: Tensor  # [N] metres between the floor and what casts the shadow


@dataclass(frozen=True)
class Capsules:
    """The K capsules of a body in N video frames."""

    start: Tensor  # [N, K, 3] metres
    end: Tensor  # [N, K, 3]
    radii: Tensor  # [K, 2] metres, at start and end
    colours: Tensor  # [K, 3] RGB in 0..1
    nearer: Tensor  # [K] metres by which a capsule is painted nearer than its middle
    striped: Tensor  # [K] bool
    head: Head
    shadow: Shadow


def cover(distance: Tensor) -> Tensor:
    """Fraction of a pixel [...] inside a shape whose signed distance [...] is in pixels."""
    return (0.5 - distance).clamp(0, 1)


def pixel_centres(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """x and y, each [size, size], of the pixels' centres, in pixels."""
    y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    return x.to(device), y.to(device)


def cast(shadow: Shadow, size: int) -> Tensor:
    """Brightness [N, 1, size, size] that a shadow at `ground` [N, 3] leaves of the floor."""
    x, y = pixel_centres(size, shadow.ground.device)
    point = CAMERA.project(shadow.ground)
    spot = point * size
    near = (CAMERA.distance / (point[:, 2] + CAMERA.distance))[:, None, None]  # 1 on the stage, less behind it
    dx = (x - spot[:, 0, None, None]) * 96 / size / (13 * near)
    dy = (y - spot[:, 1, None, None]) * 96 / size / (4.5 * near.square())
    strength = 0.42 * (1 - 1.5 * shadow.height.clamp(0, 0.4))[:, None, None]
    return (1 - strength * torch.exp(-1.3 * (dx**2 + dy**2)))[:, None]


class Brush:
    """Paints capsules in depth order, each within its own box of pixels, as most of them are small."""

    def __init__(self, capsules: Capsules, size: int) -> None:
        start, end = CAMERA.project(capsules.start), CAMERA.project(capsules.end)
        start_depth, end_depth = start[..., 2] + CAMERA.distance, end[..., 2] + CAMERA.distance
        self._x, self._y = pixel_centres(size, start.device)
        self._depth, self._metre = start_depth, CAMERA.focal * size  # a metre in pixels, one metre from the camera
        self._start, self._end = start[..., :2] * size, end[..., :2] * size
        self._radius0 = capsules.radii[:, 0] * CAMERA.focal * size / start_depth
        self._radius1 = capsules.radii[:, 1] * CAMERA.focal * size / end_depth
        self._order = (0.5 * (start_depth + end_depth) - capsules.nearer).argsort(1, descending=True).tolist()
        self._boxes = self._find_boxes(size)
        self._colours, self._striped, self._head = capsules.colours, capsules.striped.tolist(), capsules.head
        self._unit = size / 96  # pixels in which stripes and eyes are measured

    def paint(self, image: Tensor) -> None:
        """Paint all capsules over `image` [N, 3, size, size], the farthest of each video frame first."""
        for frame, order in enumerate(self._order):
            for which in order:
                left, top, right, bottom = self._boxes[frame][which]
                if left < right and top < bottom:
                    x, y = (axis[top:bottom, left:right] for axis in (self._x, self._y))
                    coverage, colour = self._capsule(frame, which, x, y)
                    part = image[frame, :, top:bottom, left:right]
                    part += coverage * (colour - part)

    def _find_boxes(self, size: int) -> list[list[list[int]]]:
        """Per video frame and capsule the pixels that it may cover: left, top, right, bottom."""
        reach = torch.maximum(self._radius0, self._radius1)[..., None] + 1
        low = (torch.minimum(self._start, self._end) - reach).floor()
        high = (torch.maximum(self._start, self._end) + reach).ceil()
        return torch.cat([low, high], dim=-1).clamp(0, size).long().tolist()  # type: ignore[no-any-return]

    def _capsule(self, frame: int, which: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Coverage [h, w] and lit colour [3, h, w] of a capsule at pixels whose centres are x and y [h, w]."""
        start, along = self._start[frame, which], self._end[frame, which] - self._start[frame, which]
        offset_x, offset_y = x - start[0], y - start[1]
        length2 = along.square().sum()
        position = ((offset_x * along[0] + offset_y * along[1]) / length2.clamp_min(1e-3)).clamp(0, 1)
        away_x, away_y = offset_x - along[0] * position, offset_y - along[1] * position
        distance = (away_x.square() + away_y.square()).clamp_min(1e-8).sqrt()
        radius0, radius1 = self._radius0[frame, which], self._radius1[frame, which]
        radius = radius0 + (radius1 - radius0) * position
        # a cylinder's normal: sideways at the rim, towards the viewer in the middle
        sideways = (distance / radius).clamp(0, 1)
        normal_x, normal_y = away_x / distance * sideways, away_y / distance * sideways
        normal_z = (1 - sideways.square()).sqrt()
        lit = 0.5 + 0.6 * (normal_x * _LIGHT[0] + normal_y * _LIGHT[1] + normal_z * _LIGHT[2]).clamp_min(0)
        colour = self._colours[which][:, None, None]
        if self._striped[which]:
            colour = colour * self._stripes(position, length2)
        if which == self._head.capsule:
            colour = self._with_hair(colour, frame, normal_x, normal_y, normal_z)
            colour = self._with_eyes(colour * lit, frame, x, y)
        else:
            colour = colour * lit
        return cover(distance - radius), colour

    def _stripes(self, position: Tensor, length2: Tensor) -> Tensor:
        bands = (torch.sin(position * length2.sqrt() / (1.9 * self._unit)) * 2).clamp(-1, 1) * 0.5 + 0.5
        return 1 - 0.38 * bands

    def _with_hair(self, colour: Tensor, frame: int, normal_x: Tensor, normal_y: Tensor, normal_z: Tensor) -> Tensor:
        """Skin where the head's surface faces forwards, hair on its top and back."""
        head = self._head
        forwards = normal_x * head.face[frame, 0] + normal_z * head.face[frame, 2]
        hair = ((-normal_y - 0.75 * forwards + 0.05) * 6).clamp(-0.5, 0.5) + 0.5
        return colour * (1 - hair) + head.hair[:, None, None] * hair

    def _with_eyes(self, colour: Tensor, frame: int, x: Tensor, y: Tensor) -> Tensor:
        head = self._head
        centre, face = self._start[frame, head.capsule], head.face[frame]
        radius = head.radius * self._metre / self._depth[frame, head.capsule]
        for sign in (-1, 1):
            turn = torch.atan2(face[0], face[2]) + 0.42 * sign
            if turn.cos() <= 0.15:  # on the back of the head
                continue
            eye_x, eye_y = centre[0] + turn.sin() * radius * 0.92, centre[1] - 0.02 * radius
            distance = ((x - eye_x) ** 2 + ((y - eye_y) / 1.35) ** 2).sqrt() / self._unit
            eye = (1.25 - distance).clamp(0, 1)
            colour = colour * (1 - eye) + 0.07 * eye
        return colour
