# SPDX-License-Identifier: Apache-2.0
"""Renderer of the person world: a capsule human in a patterned room, drawn by exact distance functions.

The pose decides everything in the picture. Pure torch, any device, batched over the video frames of one clip.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aapt_fast.errors import require, require_shape
from aapt_fast.worlds.person.capsules import Brush, Capsules, Head, Shadow, cast, cover, pixel_centres
from aapt_fast.worlds.person.identity import HAIR, SHIRT, SHOES, SKIN, TROUSERS, Identity
from aapt_fast.worlds.person.skeleton import JOINT, NOSE

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
_HORIZON = 0.66  # where the wall meets the floor, as a fraction of the frame


def _wall_pattern(identity: Identity, x: Tensor, y: Tensor, size: int) -> Tensor:
    """Coverage [size, size] of the wall's pattern."""
    unit, scale, offset = size / 96, identity.wall_scale, identity.wall_offset
    if identity.wall == "stripes":
        period = 22 * unit * scale
        return cover(((x + offset * period) % period - period / 2).abs() - period / 4)
    if identity.wall == "disc":
        centre = size * (0.2 + 0.6 * offset)
        return cover(((x - centre) ** 2 + (y - size * 0.26) ** 2).sqrt() - size * 0.16 * scale)
    if identity.wall == "window":
        dx, dy = (x - size * (0.22 if offset < 0.5 else 0.78)).abs(), (y - size * 0.28).abs()
        pane = cover(torch.maximum(dx - 13 * unit, dy - 16 * unit))
        return pane * (1 - cover(torch.minimum(dx, dy) - 1.2 * unit))
    if identity.wall == "dots":
        period = 20 * unit * scale
        dx, dy = (x + offset * period) % period - period / 2, y % period - period / 2
        return cover((dx**2 + dy**2).sqrt() - period * 0.2)
    return torch.zeros_like(x)


def _floor_shade(identity: Identity, x: Tensor, y: Tensor, size: int) -> Tensor:
    """Brightness [size, size] of the floor's pattern in perspective."""
    unit = size / 96
    depth = ((y - size * _HORIZON) / unit).clamp_min(0.5) + 26
    across, away = (x - size / 2) / unit / depth * 60, 2200 / depth
    if identity.floor == "planks":
        gap = (across / 22 % 1 - 0.5).abs() * 22 * depth / 60 * unit
        return 1 - 0.3 * cover(0.5 * 22 * depth / 60 * unit - gap - 0.6 * unit)
    if identity.floor == "checker":
        columns = torch.tanh(6 * torch.sin(across / 18 * torch.pi))
        rows = torch.tanh(6 * torch.sin(away / 11 * torch.pi))
        return 1 - 0.12 * (1 - columns * rows)
    return torch.ones_like(x)


def draw_room(identity: Identity, size: int, device: torch.device | str = "cpu") -> Tensor:
    """The empty room [3, size, size] in 0..1."""
    x, y = pixel_centres(size, torch.device(device))
    horizon, unit = size * _HORIZON, size / 96
    plain = identity.wall_colour.to(x.device)[:, None, None] * (1.06 - 0.22 * y / size)
    pattern = _wall_pattern(identity, x, y, size)
    wall = plain * (1 - pattern) + plain * identity.wall_shade * pattern
    wall = wall * (1 - 0.35 * cover((y - horizon + 2 * unit).abs() - 1.6 * unit))  # skirting board
    light = 0.82 + 0.3 * (y - horizon) / (size - horizon)
    floor = identity.floor_colour.to(x.device)[:, None, None] * light * _floor_shade(identity, x, y, size)
    below = cover(horizon - y)
    return (wall * (1 - below) + floor * below).clamp(0, 1)


def body(joints: Tensor, identity: Identity) -> Capsules:
    """The capsules of the bodies `joints` [N, 19, 3] in metres."""
    device = joints.device
    start = torch.tensor([JOINT[c[0]] for c in _CAPSULES], device=device)
    end = torch.tensor([JOINT[c[1]] for c in _CAPSULES], device=device)
    colours = identity.colours.to(device)
    striped = [identity.striped and number in _STRIPED for number in range(len(_CAPSULES))]
    ground = joints[:, JOINT["pelvis"]].clone()
    ground[:, 1] = 0
    face = (joints[:, JOINT["nose"]] - joints[:, JOINT["head"]]) / NOSE
    return Capsules(
        start=joints[:, start],
        end=joints[:, end],
        radii=torch.tensor([[c[2], c[3]] for c in _CAPSULES], device=device),
        colours=colours[[c[4] for c in _CAPSULES]],
        nearer=torch.tensor([c[5] for c in _CAPSULES], device=device),
        striped=torch.tensor(striped, device=device),
        head=Head(_HEAD, _CAPSULES[_HEAD][2], face, colours[HAIR]),
        shadow=Shadow(ground, torch.minimum(joints[:, JOINT["left_foot"], 1], joints[:, JOINT["right_foot"], 1])),
    )


def render(joints: Tensor, identity: Identity, size: int = 96, room: Tensor | None = None) -> Tensor:
    """Video frames [N, 3, size, size] in 0..1 of the bodies `joints` [N, 19, 3] in metres.

    `room` [3, size, size] is the background if it was drawn before. Raises ValueError for another shape.
    """
    require_shape("joints", joints, "N", len(JOINT), 3)
    require(size % 8 == 0 and size > 0, "size", "a positive multiple of 8", size)
    if room is None:
        room = draw_room(identity, size, joints.device)
    person = body(joints, identity)
    image = room * cast(person.shadow, size)
    Brush(person, size).paint(image)
    return image.clamp(0, 1)
