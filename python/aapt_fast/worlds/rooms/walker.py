# SPDX-License-Identifier: Apache-2.0
"""The body that carries the camera: speeds that are asked for -> poses, one per video frame, and doors that open.

Speeds are six numbers in -1..1, in the order of `AXES`, of the top speeds `FASTEST`. A body takes a few video frames to
reach them, cannot pass walls, things and closed doors, and opens the doors that it comes near.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aapt_fast.worlds.rooms.house import House
from aapt_fast.worlds.rooms.plan import DOOR_WIDTH, WALL, Door
from aapt_fast.worlds.world import FPS

AXES = ("right", "up", "forwards", "pitch", "yaw", "roll")
FASTEST = np.array([0.9, 0.5, 1.3, 0.7, 1.3, 0.5])  # metres and radians per second
EASING = 0.3  # share of the difference to the speed asked for that a video frame makes up
LOWEST, HIGHEST = 0.7, 1.95  # metres of the camera above the floor
STEEPEST, TILTED = 0.7, 0.35  # radians of pitch and roll
CLEAR = 0.3  # metres between the camera and walls or things
DOOR_CLEAR = 0.22  # metres between the camera and the sides of an opening
OPENS_AT = 1.6  # metres before a door at which it begins to open
OPENING = 14  # video frames
PASSABLE = 0.6  # share by which a door has to be open

ACTIONS: dict[str, tuple[float, ...]] = {
    "forward": (0, 0, 1, 0, 0, 0),
    "back": (0, 0, -1, 0, 0, 0),
    "left": (-1, 0, 0, 0, 0, 0),
    "right": (1, 0, 0, 0, 0, 0),
    "turn_left": (0, 0, 0, 0, -1, 0),
    "turn_right": (0, 0, 0, 0, 1, 0),
    "look_up": (0, 0, 0, 1, 0, 0),
    "look_down": (0, 0, 0, -1, 0, 0),
    "stand": (0, 0, 0, 0, 0, 0),
}
"""Speeds of the actions of the world."""

MIRRORED = np.array([-1, 1, 1, 1, -1, -1])
"""Signs of the axes in a mirror."""


class Walker:
    """Moves a camera from `pose` [6] through a house; through nothing that is known without one."""

    def __init__(self, house: House | None, pose: Sequence[float] | np.ndarray) -> None:
        self.house = house
        self.pose = np.array(pose, float)
        self.velocity = np.zeros(6)  # of AXES, per second
        doors = () if house is None else house.plan.doors
        self.doors = np.tile(np.array([0.0, 1.0]), (len(doors), 1))  # opened by so much, into its room -1 or 1

    def step(self, speeds: Sequence[float] | np.ndarray) -> None:
        """Go on by one video frame."""
        self.velocity += EASING * (np.asarray(speeds, float) * FASTEST - self.velocity)
        right, up, forwards, pitch, yaw, roll = self.velocity / FPS
        pose = self.pose
        sin, cos = np.sin(pose[3]), np.cos(pose[3])
        self._move(np.array([forwards * sin + right * cos, forwards * cos - right * sin]))
        pose[1] = np.clip(pose[1] + up, LOWEST, HIGHEST)
        pose[3] = (pose[3] + yaw + np.pi) % (2 * np.pi) - np.pi
        pose[4] = np.clip(pose[4] + pitch, -STEEPEST, STEEPEST)
        pose[5] = np.clip(pose[5] * 0.96 + roll, -TILTED, TILTED)
        self._open_doors()

    def _move(self, by: np.ndarray) -> None:
        """Move the place by [2] metres, or along one axis of the house if the other is blocked."""
        for move in (by, by * np.array([1, 0]), by * np.array([0, 1])):
            if is_free(self.house, self.pose[[0, 2]] + move, self.doors):
                self.pose[[0, 2]] += move
                return

    def _open_doors(self) -> None:
        if self.house is None:
            return
        place = self.pose[[0, 2]]
        for number, door in enumerate(self.house.plan.doors):
            opened = self.doors[number]
            if opened[0] == 0:
                away, aside = place[door.axis] - door.at, abs(place[1 - door.axis] - door.along)
                if not door.has_leaf or abs(away) > OPENS_AT or aside > 1.0:
                    continue
                if self.house.plan.room_at(place) not in (door.first, door.second):
                    continue
                opened[1] = -1.0 if away > 0 else 1.0
            opened[0] = min(1.0, opened[0] + 1 / OPENING)


def is_free(house: House | None, place: np.ndarray, doors: np.ndarray | None = None, margin: float = CLEAR) -> bool:
    """True where a camera may be, at x, z [2]; closed `doors` [D, 2] block it, without them none does."""
    if house is None:
        return True
    for number, door in enumerate(house.plan.doors):
        if _in_opening(door, place):
            return not door.has_leaf or doors is None or doors[number, 0] >= PASSABLE
    room = house.plan.room_at(place)
    if not house.plan.rooms[room].holds(place, margin):
        return False
    found = house.obstacles(room)
    gaps = np.maximum(np.maximum(found[:, :2] - place, place - found[:, 2:]), 0)
    return bool((np.hypot(gaps[:, 0], gaps[:, 1]) >= margin).all())


def _in_opening(door: Door, place: np.ndarray) -> bool:
    """True between the sides of an opening, up to where a room's own margin ends."""
    away, aside = abs(place[door.axis] - door.at), abs(place[1 - door.axis] - door.along)
    return bool(away <= WALL / 2 + CLEAR + 0.02 and aside <= DOOR_WIDTH / 2 - DOOR_CLEAR)


def clear_between(house: House, start: np.ndarray, end: np.ndarray, margin: float = CLEAR + 0.05) -> bool:
    """True if a camera can go straight from `start` to `end`, x, z [2], when all doors are open."""
    steps = max(2, int(np.linalg.norm(end - start) / 0.12))
    return all(is_free(house, start + (end - start) * share, margin=margin) for share in np.linspace(0, 1, steps)[1:])
