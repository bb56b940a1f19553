# SPDX-License-Identifier: Apache-2.0
"""Light on the surfaces of a room: its lamp, and darker corners and contacts, on a grid of nodes per quad."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aapt_fast.worlds.rooms.plan import Room
from aapt_fast.worlds.rooms.surfaces import Quad

NODES_PER_METRE = 6
MOST_NODES = 48  # along one side of a quad

Box = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class LightMap:
    """Brightness at the nodes of many quads."""

    values: np.ndarray  # float32 [N]
    start: np.ndarray  # int32 [Q], the first node of a quad
    counts: np.ndarray  # int32 [Q, 2], nodes along u and v, at least 2


def light_quads(quads: Sequence[Quad], room: Room, lamp: np.ndarray, boxes: Sequence[Box]) -> LightMap:
    """Brightness of the quads in a room whose lamp hangs at `lamp` [3], with shadows around `boxes`.

    A quad inside a box or on it has no shadow of that box.
    """
    corners, points, normals, owners = [], [], [], []
    counts: np.ndarray = np.zeros((len(quads), 2), np.int32)
    for number, quad in enumerate(quads):
        lengths = np.array([np.linalg.norm(quad.u), np.linalg.norm(quad.v)])
        counts[number] = np.clip(np.ceil(lengths * NODES_PER_METRE) + 1, 2, MOST_NODES)
        s, r = np.linspace(0, 1, counts[number, 0]), np.linspace(0, 1, counts[number, 1])
        grid = quad.corner + r[:, None, None] * quad.v + s[None, :, None] * quad.u
        normal = np.cross(quad.v, quad.u)
        corners.append(quad.corner + 0.5 * (quad.u + quad.v))
        points.append(grid.reshape(-1, 3))
        normals.append(np.broadcast_to(normal / np.linalg.norm(normal), points[-1].shape))
        owners.append(np.full(len(points[-1]), number))
    place, normal, owner = np.concatenate(points), np.concatenate(normals), np.concatenate(owners)
    values = direct_light(place, normal, lamp) * _corners(place, normal, room)
    values *= _contacts(place, normal, boxes, np.array(corners)[owner])
    sizes = counts.prod(1)
    start = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int32)
    return LightMap(values.astype(np.float32), start, counts)


def direct_light(place: np.ndarray, normal: np.ndarray, lamp: np.ndarray) -> np.ndarray:
    """Brightness [N] of points [N, 3] with normals [N, 3] under a lamp at [3]."""
    to_lamp = lamp - place
    square = (to_lamp**2).sum(1)
    cosine = (to_lamp * normal).sum(1) / np.sqrt(square + 1e-6)
    soft = np.clip(cosine * 0.85 + 0.15, 0, None)  # a lamp has a width
    return 0.55 - 0.08 * normal[:, 1] + 0.85 * soft / (1 + 0.1 * square)


def _corners(place: np.ndarray, normal: np.ndarray, room: Room) -> np.ndarray:
    """Share of light [N] that is left near walls, floor and ceiling."""
    left = np.ones(len(place))
    low, high = (room.low[0], 0.0, room.low[1]), (room.high[0], room.height, room.high[1])
    for axis in range(3):
        facing = np.abs(normal[:, axis]) > 0.9
        for distance in (place[:, axis] - low[axis], high[axis] - place[:, axis]):
            left *= np.where(facing, 1, 1 - 0.32 * np.exp(-np.clip(distance, 0, None) / 0.28))
    return left


def _contacts(place: np.ndarray, normal: np.ndarray, boxes: Sequence[Box], middles: np.ndarray) -> np.ndarray:
    """Share of light [N] that is left near and below boxes; `middles` [N, 3] are those of the points' quads."""
    left, floor = np.ones(len(place)), (normal[:, 1] > 0.9) & (place[:, 1] < 0.05)
    end = np.exp(-0.55 / 0.16)
    for low, high in boxes:
        gaps = np.maximum(np.maximum(low - place, place - high), 0)
        near = np.flatnonzero((gaps < 0.55).all(1) | (floor & (gaps[:, [0, 2]] < 0.3).all(1)))
        own = ((middles[near] > low - 0.03) & (middles[near] < high + 0.03)).all(1)
        near = near[~own]
        if not len(near):
            continue
        distance = np.sqrt((gaps[near] ** 2).sum(1))
        left[near] *= 1 - 0.5 * np.clip(np.exp(-distance / 0.16) - end, 0, None)
        aside = np.sqrt((gaps[near][:, [0, 2]] ** 2).sum(1))
        below = 0.4 * np.exp(-low[1]) * np.clip(1 - aside / 0.3, 0, None)
        left[near] *= np.where(floor[near], 1 - below, 1)
    return left
