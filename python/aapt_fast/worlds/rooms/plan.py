# SPDX-License-Identifier: Apache-2.0
"""The plan of a house: rooms on a grid, the doors between them, and what stands where a camera may go.

Lengths are metres; x points right on the plan, z up the plan, y to the ceiling. All futures of a house have one plan.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WALL = 0.16  # thickness
DOOR_WIDTH, DOOR_HEIGHT = 1.0, 2.05
BODY = 0.35  # radius of the body that carries the camera


@dataclass(frozen=True)
class Room:
    """One room; its walls stand at these coordinates."""

    low: tuple[float, float]  # x, z
    high: tuple[float, float]
    height: float

    @property
    def centre(self) -> np.ndarray:
        """x, z of the middle, [2]."""
        return (np.array(self.low) + np.array(self.high)) / 2

    def holds(self, place: np.ndarray, margin: float = 0.0) -> bool:
        """True for a place x, z [2] that is at least `margin` from every wall."""
        x, z = float(place[0]), float(place[1])
        return bool(
            self.low[0] + margin <= x <= self.high[0] - margin and self.low[1] + margin <= z <= self.high[1] - margin
        )


@dataclass(frozen=True)
class Door:
    """An opening in the wall between the rooms `first`, at lower coordinates, and `second`."""

    first: int
    second: int
    axis: int  # 0: the wall stands at an x, 1: at a z
    at: float  # the middle of the wall
    along: float  # the middle of the opening, on the other axis
    has_leaf: bool
    hinge: int  # -1 or 1, the side of the opening

    @property
    def place(self) -> np.ndarray:
        """x, z of the middle, [2]."""
        return np.array([self.at, self.along] if self.axis == 0 else [self.along, self.at])

    @property
    def stands_at(self) -> np.ndarray:
        """Its middle on the floor, [3]."""
        return np.insert(self.place, 1, 0.0)

    def before(self, room: int, distance: float) -> np.ndarray:
        """x, z [2] of the point in one of its rooms, straight before the opening."""
        place = self.place
        place[self.axis] += (distance if room == self.second else -distance) + 0.0
        return place

    def other(self, room: int) -> int:
        """The room on the other side of `room`."""
        return self.second if room == self.first else self.first

    def inside(self, place: np.ndarray) -> bool:
        """True where a body stands in the opening, or no farther than itself from it."""
        away, aside = place[self.axis] - self.at, place[1 - self.axis] - self.along
        return bool(abs(away) < WALL / 2 + BODY + 0.02 and abs(aside) < DOOR_WIDTH / 2)


@dataclass(frozen=True)
class Plan:
    """Rooms and doors; every room can be reached."""

    rooms: tuple[Room, ...]
    doors: tuple[Door, ...]

    def doors_of(self, room: int) -> list[int]:
        """Numbers of the doors of a room."""
        return [number for number, door in enumerate(self.doors) if room in (door.first, door.second)]

    def room_at(self, place: np.ndarray) -> int:
        """The room in or nearest to the place x, z [2]."""
        distances = [max(*(np.array(room.low) - place), *(place - np.array(room.high))) for room in self.rooms]
        return int(np.argmin(distances))


def make_plan(seed: int) -> Plan:
    """Plan number `seed`: two or three rows of two or three rooms."""
    rng = np.random.default_rng([seed, 1])
    columns, rows = (int(n) for n in rng.integers(2, 4, 2))
    widths, depths = rng.uniform(3.9, 6.2, columns), rng.uniform(3.9, 6.2, rows)
    x = np.concatenate([[0.0], np.cumsum(widths + WALL)])
    z = np.concatenate([[0.0], np.cumsum(depths + WALL)])
    rooms = tuple(
        Room(
            (float(x[c]), float(z[r])),
            (float(x[c] + widths[c]), float(z[r] + depths[r])),
            float(rng.uniform(2.5, 3.0)),
        )
        for r in range(rows)
        for c in range(columns)
    )
    walls = [(n, n + 1, 0) for n in range(len(rooms)) if n % columns < columns - 1]
    walls += [(n, n + columns, 1) for n in range(len(rooms) - columns)]
    rng.shuffle(walls)
    group = list(range(len(rooms)))
    doors = []
    for first, second, axis in (tuple(map(int, wall)) for wall in walls):
        if group[first] == group[second] and rng.random() < 0.4:
            continue
        group = [group[first] if each == group[second] else each for each in group]
        doors.append(_make_door(rooms[first], first, second, axis, rng))
    return Plan(rooms, tuple(doors))


def _make_door(room: Room, first: int, second: int, axis: int, rng: np.random.Generator) -> Door:
    low, high = room.low[1 - axis] + 0.9, room.high[1 - axis] - 0.9
    return Door(
        first,
        second,
        axis,
        room.high[axis] + WALL / 2,
        float(rng.uniform(low, high)),
        bool(rng.random() < 0.75),
        int(rng.choice([-1, 1])),
    )
