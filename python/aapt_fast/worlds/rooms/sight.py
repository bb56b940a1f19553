# SPDX-License-Identifier: Apache-2.0
"""The part of a house that the first video frame of a clip shows, and what keeps that: other futures, and bodies."""

from __future__ import annotations

import dataclasses

import numpy as np

from aapt_fast.worlds.rooms.camera import Camera, rotation
from aapt_fast.worlds.rooms.house import Hides, House, Known, make_house
from aapt_fast.worlds.rooms.renderer import Renderer


def out_of_sight(pose: np.ndarray, camera: Camera) -> Hides:
    """A test for boxes, given by two corners [3]: True for those of which `pose` [6] sees no part."""
    turned, half = rotation(pose), camera.half

    def hides(low: np.ndarray, high: np.ndarray) -> bool:
        corners = np.array([[x, y, z] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])])
        x, y, z = ((corners - pose[:3]) @ turned).T
        beyond = (z < 0, x > half * z, x < -half * z, y > half * z, y < -half * z)
        return any(bool(side.all()) for side in beyond)

    return hides


def known_at_first(house: House, poses: np.ndarray, doors: np.ndarray, camera: Camera) -> Known:
    """The part of a house that futures share of a clip with these poses [T, 6], which begins with `doors` [D, 2]."""
    seen = Renderer(house, 8, camera).visible_rooms(poses[0], doors)
    return Known(frozenset(seen), out_of_sight(poses[0], camera), poses[:, [0, 2]])


def decided_house(house: House, pose: np.ndarray, doors: np.ndarray, camera: Camera) -> House:
    """The house with only those solid things that a first video frame shows from `pose` [6]; all else stays.

    Other solid things differ from future to future, so a model may show a free floor in their place.
    """
    known = known_at_first(house, pose[None], doors, camera)
    rooms = []
    for number, room in enumerate(house.rooms):
        seen = [number in known.rooms and not known.hides(each.low, each.high) for each in room.things]
        kept = [each for each, shown in zip(room.things, seen, strict=True) if shown or not each.solid]
        rooms.append(dataclasses.replace(room, things=tuple(kept)))
    return dataclasses.replace(house, rooms=tuple(rooms))


def other_future(house: House, seed: int, future: int, poses: np.ndarray, doors: np.ndarray, camera: Camera) -> House:
    """Future number `future` of house number `seed` for a clip with these poses [T, 6] and first `doors` [D, 2]."""
    return house if future == 0 else make_house(seed, future, known_at_first(house, poses, doors, camera))
