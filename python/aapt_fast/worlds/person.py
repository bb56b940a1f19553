# SPDX-License-Identifier: Apache-2.0
"""The `person` world: a capsule human in a patterned room, drawn by exact distance functions.

Every limb is a tapered capsule in the image plane, painted back to front, lit as a cylinder; a coverage of
`clamp(0.5 - distance)` pixels makes the edges anti-aliased without supersampling. Pure torch, any device, batched over
the video frames of one clip.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aapt_fast.errors import require, require_shape
from aapt_fast.worlds.skeleton import JOINT, Camera

SHIRT, TROUSERS, SKIN, SHOES, HAIR = range(5)

# joint, joint, radius at each in metres, colour, how much nearer than its middle it is painted
_CAPSULES = (
    ("pelvis", "chest", 0.135, 0.165, SHIRT, 0.0),
    ("left_shoulder", "right_shoulder", 0.075, 0.075, SHIRT, -0.02),
    ("left_hip", "right_hip", 0.10, 0.10, TROUSERS, 0.0),
    ("neck", "head", 0.055, 0.055, SKIN, 0.05),
    ("head", "head", 0.125, 0.125, SKIN, 0.0),
    ("left_shoulder", "left_elbow", 0.068, 0.058, SHIRT, 0.03),
    ("left_elbow", "left_hand", 0.052, 0.042, SKIN, 0.03),
    ("left_hand", "left_hand", 0.055, 0.055, SKIN, 0.03),
    ("right_shoulder", "right_elbow", 0.068, 0.058, SHIRT, 0.03),
    ("right_elbow", "right_hand", 0.052, 0.042, SKIN, 0.03),
    ("right_hand", "right_hand", 0.055, 0.055, SKIN, 0.03),
    ("left_hip", "left_knee", 0.098, 0.075, TROUSERS, 0.0),
    ("left_knee", "left_foot", 0.072, 0.05, TROUSERS, 0.0),
    ("left_foot", "left_toe", 0.055, 0.05, SHOES, 0.0),
    ("right_hip", "right_knee", 0.098, 0.075, TROUSERS, 0.0),
    ("right_knee", "right_foot", 0.072, 0.05, TROUSERS, 0.0),
    ("right_foot", "right_toe", 0.055, 0.05, SHOES, 0.0),
)
_HEAD = 4
_STRIPED = (0, 5, 8)  # the chest and both sleeves carry the shirt's stripes
_HEAD_RADIUS, _NOSE_LENGTH = 0.125, 0.13
_LIGHT = torch.nn.functional.normalize(torch.tensor([-0.45, -0.65, 0.62]), dim=0).tolist()
_HORIZON = 0.66  # where the wall meets the floor, as a fraction of the frame

WALLS = ("plain", "stripes", "disc", "window", "dots")
FLOORS = ("plain", "planks", "checker")


@dataclass(frozen=True)
class Identity:
    """Who stands in which room: everything about the picture that the pose does not say."""

    colours: Tensor  # [5, 3] RGB in 0..1 of shirt, trousers, skin, shoes, hair
    striped: bool
    wall: str
    wall_colour: Tensor  # [3]
    wall_shade: float  # brightness of the pattern relative to the wall
    wall_scale: float
    wall_offset: float
    floor: str
    floor_colour: Tensor  # [3]


def _hsv(hue: float, saturation: float, value: float) -> Tensor:
    k = (torch.tensor([5.0, 3.0, 1.0]) + hue * 6) % 6
    return value - value * saturation * torch.minimum(torch.minimum(k, 4 - k), torch.ones(3)).clamp(0)


def make_identity(seed: int) -> Identity:
    """The person and room number `seed`."""
    generator = torch.Generator().manual_seed(seed)

    def between(low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * float(torch.rand(1, generator=generator))

    hue = between()
    skin = torch.tensor([0.96, 0.76, 0.62]) * (1 - 0.6 * between() ** 1.3)
    hairs = (
        (0.08, 0.5, 0.18),
        (0.08, 0.6, 0.35),
        (0.12, 0.55, 0.8),
        (0.03, 0.7, 0.5),
        (0.0, 0.0, 0.6),
        (0.6, 0.2, 0.1),
    )
    shirt = _hsv(hue, between(0.55, 0.85), between(0.6, 0.95))
    trousers = _hsv((hue + between(0.2, 0.8)) % 1, between(0.3, 0.7), between(0.25, 0.7))
    shoes = _hsv(between(), between(0, 0.6), between(0.15, 0.95))
    hair = _hsv(*hairs[int(between() * len(hairs))])
    return Identity(
        colours=torch.stack([shirt, trousers, skin, shoes, hair]),
        striped=between() < 0.4,
        wall=WALLS[int(between() * len(WALLS))],
        wall_colour=_hsv((hue + between(0.3, 0.7)) % 1, between(0.1, 0.4), between(0.6, 0.92)),
        wall_shade=between(0.72, 0.9),
        wall_scale=between(0.6, 1.4),
        wall_offset=between(),
        floor=FLOORS[int(between() * len(FLOORS))],
        floor_colour=_hsv(
            between(0.02, 0.14) if between() < 0.6 else between(), between(0.15, 0.5), between(0.35, 0.75)
        ),
    )


def _cover(distance: Tensor) -> Tensor:
    """Fraction of a pixel inside a shape whose signed distance is `distance` pixels."""
    return (0.5 - distance).clamp(0, 1)


def _pixel_centres(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    return x.to(device), y.to(device)


def _wall_pattern(identity: Identity, x: Tensor, y: Tensor, size: int) -> Tensor:
    """Coverage [size, size] of the wall's pattern."""
    unit, scale, offset = size / 96, identity.wall_scale, identity.wall_offset
    if identity.wall == "stripes":
        period = 22 * unit * scale
        return _cover(((x + offset * period) % period - period / 2).abs() - period / 4)
    if identity.wall == "disc":
        centre = size * (0.2 + 0.6 * offset)
        return _cover(((x - centre) ** 2 + (y - size * 0.26) ** 2).sqrt() - size * 0.16 * scale)
    if identity.wall == "window":
        dx, dy = (x - size * (0.22 if offset < 0.5 else 0.78)).abs(), (y - size * 0.28).abs()
        pane = _cover(torch.maximum(dx - 13 * unit, dy - 16 * unit))
        return pane * (1 - _cover(torch.minimum(dx, dy) - 1.2 * unit))
    if identity.wall == "dots":
        period = 20 * unit * scale
        dx, dy = (x + offset * period) % period - period / 2, y % period - period / 2
        return _cover((dx**2 + dy**2).sqrt() - period * 0.2)
    return torch.zeros_like(x)


def _floor_shade(identity: Identity, x: Tensor, y: Tensor, size: int) -> Tensor:
    """Brightness [size, size] of the floor's pattern in perspective."""
    unit = size / 96
    depth = ((y - size * _HORIZON) / unit).clamp_min(0.5) + 26
    across, away = (x - size / 2) / unit / depth * 60, 2200 / depth
    if identity.floor == "planks":
        gap = (across / 22 % 1 - 0.5).abs() * 22 * depth / 60 * unit
        return 1 - 0.3 * _cover(0.5 * 22 * depth / 60 * unit - gap - 0.6 * unit)
    if identity.floor == "checker":
        columns = torch.tanh(6 * torch.sin(across / 18 * torch.pi))
        rows = torch.tanh(6 * torch.sin(away / 11 * torch.pi))
        return 1 - 0.12 * (1 - columns * rows)
    return torch.ones_like(x)


def draw_room(identity: Identity, size: int, device: torch.device | str = "cpu") -> Tensor:
    """The empty room [3, size, size] in 0..1."""
    x, y = _pixel_centres(size, torch.device(device))
    horizon, unit = size * _HORIZON, size / 96
    plain = identity.wall_colour.to(x.device)[:, None, None] * (1.06 - 0.22 * y / size)
    pattern = _wall_pattern(identity, x, y, size)
    wall = plain * (1 - pattern) + plain * identity.wall_shade * pattern
    wall = wall * (1 - 0.35 * _cover((y - horizon + 2 * unit).abs() - 1.6 * unit))  # skirting board
    light = 0.82 + 0.3 * (y - horizon) / (size - horizon)
    floor = identity.floor_colour.to(x.device)[:, None, None] * light * _floor_shade(identity, x, y, size)
    below = _cover(horizon - y)
    return (wall * (1 - below) + floor * below).clamp(0, 1)


def render(
    joints: Tensor, identity: Identity, size: int = 96, camera: Camera = Camera(), room: Tensor | None = None
) -> Tensor:
    """Video frames [N, 3, size, size] in 0..1 of the bodies `joints` [N, 19, 3] in metres.

    `room` [3, size, size] is the background if it was drawn before. Raises ValueError for another shape.
    """
    require_shape("joints", joints, "N", len(JOINT), 3)
    require(size % 8 == 0 and size > 0, "size", "a positive multiple of 8", size)
    if room is None:
        room = draw_room(identity, size, joints.device)
    image = room * _contact_shadow(joints, size, camera)
    brush = _Brush(joints, identity, size, camera)
    image = image.flatten(2)
    for rank in range(len(_CAPSULES)):
        cover, colour = brush.paint(rank)
        image = image + cover[:, None] * (colour - image)
    return image.view(-1, 3, size, size).clamp(0, 1)


def _contact_shadow(joints: Tensor, size: int, camera: Camera) -> Tensor:
    """Brightness [N, 1, size, size] of the floor under the body; fainter when the feet leave the floor."""
    x, y = _pixel_centres(size, joints.device)
    ground = joints[:, JOINT["pelvis"]].clone()
    ground[:, 1] = 0
    spot = camera.project(ground) * size
    height = torch.minimum(joints[:, JOINT["left_foot"], 1], joints[:, JOINT["right_foot"], 1]).clamp(0, 0.4)
    dx = (x - spot[:, 0, None, None]) * 96 / size / 13
    dy = (y - spot[:, 1, None, None]) * 96 / size / 4.5
    strength = 0.42 * (1 - 1.5 * height)[:, None, None]
    return (1 - strength * torch.exp(-1.3 * (dx**2 + dy**2)))[:, None]


class _Brush:
    """Paints the capsules of one clip in depth order; `paint(0)` is the farthest of each video frame."""

    def __init__(self, joints: Tensor, identity: Identity, size: int, camera: Camera) -> None:
        device = joints.device
        points = camera.project(joints)
        depth = points[..., 2] + camera.distance
        start = torch.tensor([JOINT[c[0]] for c in _CAPSULES], device=device)
        end = torch.tensor([JOINT[c[1]] for c in _CAPSULES], device=device)
        radii = torch.tensor([[c[2], c[3]] for c in _CAPSULES], device=device)
        nearer = torch.tensor([c[5] for c in _CAPSULES], device=device)
        self._xy = torch.stack(_pixel_centres(size, device)).view(1, 2, -1)
        self._start, self._end = points[:, start, :2] * size, points[:, end, :2] * size
        self._radius0 = radii[:, 0] * camera.focal * size / depth[:, start]
        self._radius1 = radii[:, 1] * camera.focal * size / depth[:, end]
        self._order = (0.5 * (depth[:, start] + depth[:, end]) - nearer).argsort(1, descending=True)
        self._rows = torch.arange(len(joints), device=device)
        self._colours = identity.colours.to(device)
        self._capsule_colour = self._colours[[c[4] for c in _CAPSULES]]
        self._striped = identity.striped
        self._head = points[:, JOINT["head"], :2] * size
        self._head_radius = _HEAD_RADIUS * camera.focal * size / depth[:, JOINT["head"]]
        self._face = (joints[:, JOINT["nose"]] - joints[:, JOINT["head"]]) / _NOSE_LENGTH
        self._unit = size / 96

    def paint(self, rank: int) -> tuple[Tensor, Tensor]:
        """Coverage [N, pixels] and lit colour [N, 3, pixels] of the capsule at place `rank` of each video frame."""
        which, rows = self._order[:, rank], self._rows
        start, along = self._start[rows, which], self._end[rows, which] - self._start[rows, which]
        offset = self._xy - start[:, :, None]
        length2 = along.square().sum(1, keepdim=True)
        position = ((offset * along[:, :, None]).sum(1) / length2.clamp_min(1e-3)).clamp(0, 1)
        away = offset - along[:, :, None] * position[:, None]
        distance = away.square().sum(1).clamp_min(1e-8).sqrt()
        radius0, radius1 = self._radius0[rows, which, None], self._radius1[rows, which, None]
        radius = radius0 + (radius1 - radius0) * position
        # a cylinder's normal: sideways at the rim, towards the viewer in the middle
        sideways = (distance / radius).clamp(0, 1)
        normal_x, normal_y = (away / distance[:, None] * sideways[:, None]).unbind(1)
        normal_z = (1 - sideways.square()).sqrt()
        lit = 0.5 + 0.6 * (normal_x * _LIGHT[0] + normal_y * _LIGHT[1] + normal_z * _LIGHT[2]).clamp_min(0)
        colour = self._capsule_colour[which][:, :, None].expand(-1, -1, lit.shape[1])
        if self._striped:
            colour = colour * self._stripes(which, position, length2)
        is_head = which == _HEAD
        if is_head.any():
            colour = torch.where(is_head[:, None, None], self._with_hair(normal_x, normal_y, normal_z), colour)
        colour = colour * lit[:, None]
        if is_head.any():
            colour = self._with_eyes(colour, is_head)
        return _cover(distance - radius), colour

    def _stripes(self, which: Tensor, position: Tensor, length2: Tensor) -> Tensor:
        bands = (torch.sin(position * length2.sqrt() / (1.9 * self._unit)) * 2).clamp(-1, 1) * 0.5 + 0.5
        striped = torch.isin(which, torch.tensor(_STRIPED, device=which.device))
        return (1 - 0.38 * bands * striped[:, None])[:, None]

    def _with_hair(self, normal_x: Tensor, normal_y: Tensor, normal_z: Tensor) -> Tensor:
        """Skin where the head's surface faces forwards, hair on its top and back."""
        forwards = normal_x * self._face[:, :1] + normal_z * self._face[:, 2:]
        hair = ((-normal_y - 0.75 * forwards + 0.05) * 6).clamp(-0.5, 0.5)[:, None] + 0.5
        return self._colours[SKIN][None, :, None] * (1 - hair) + self._colours[HAIR][None, :, None] * hair

    def _with_eyes(self, colour: Tensor, is_head: Tensor) -> Tensor:
        x, y = self._xy.unbind(1)
        for sign in (-1, 1):
            turn = torch.atan2(self._face[:, 0], self._face[:, 2]) + 0.42 * sign
            eye_x = self._head[:, :1] + (turn.sin() * self._head_radius * 0.92)[:, None]
            eye_y = self._head[:, 1:] - 0.02 * self._head_radius[:, None]
            distance = ((x - eye_x) ** 2 + ((y - eye_y) / 1.35) ** 2).sqrt() / self._unit
            seen = (is_head & (turn.cos() > 0.15)).float()[:, None]
            eye = ((1.25 - distance).clamp(0, 1) * seen)[:, None]
            colour = colour * (1 - eye) + 0.07 * eye
        return colour
