# SPDX-License-Identifier: Apache-2.0
"""Persons and their rooms: the colours and patterns that a seed draws."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SHIRT, TROUSERS, SKIN, SHOES, HAIR = range(5)
WALLS = ("plain", "stripes", "disc", "window", "dots")
FLOORS = ("plain", "planks", "checker")


@dataclass(frozen=True)
class Identity:
    """A person and a room: everything in the picture that the pose does not decide."""

    colours: Tensor  # [5, 3] RGB in 0..1 of shirt, trousers, skin, shoes, hair
    striped: bool
    wall: str
    wall_colour: Tensor  # [3]
    wall_shade: float  # brightness of the pattern relative to the wall
    wall_scale: float
    wall_offset: float
    floor: str
    floor_colour: Tensor  # [3]


def hsv(hue: float, saturation: float, value: float) -> Tensor:
    """RGB [3] in 0..1 of a colour; the hue too is in 0..1."""
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
    shirt = hsv(hue, between(0.55, 0.85), between(0.6, 0.95))
    trousers = hsv((hue + between(0.2, 0.8)) % 1, between(0.3, 0.7), between(0.25, 0.7))
    shoes = hsv(between(), between(0, 0.6), between(0.15, 0.95))
    hair = hsv(*hairs[int(between() * len(hairs))])
    return Identity(
        colours=torch.stack([shirt, trousers, skin, shoes, hair]),
        striped=between() < 0.4,
        wall=WALLS[int(between() * len(WALLS))],
        wall_colour=hsv((hue + between(0.3, 0.7)) % 1, between(0.1, 0.4), between(0.6, 0.92)),
        wall_shade=between(0.72, 0.9),
        wall_scale=between(0.6, 1.4),
        wall_offset=between(),
        floor=FLOORS[int(between() * len(FLOORS))],
        floor_colour=hsv(
            between(0.02, 0.14) if between() < 0.6 else between(), between(0.15, 0.5), between(0.35, 0.75)
        ),
    )
