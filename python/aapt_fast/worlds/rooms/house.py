# SPDX-License-Identifier: Apache-2.0
"""Houses: what stands in the rooms of a plan, and which part of it chance decides.

Future 0 of a house is the house as it is. In another future, everything that the first video frame cannot show is drawn
anew: rooms behind closed doors with all that is in them, and things beside and behind the camera. What stays has its
place, and nothing is put on the way that the camera takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from aapt_fast.worlds.rooms.colours import Palette, tint
from aapt_fast.worlds.rooms.furniture import FREE_PIECES, WALL_PIECES
from aapt_fast.worlds.rooms.pictures import POSTERS
from aapt_fast.worlds.rooms.plan import BODY, DOOR_WIDTH, Door, Plan, Room, make_plan
from aapt_fast.worlds.rooms.shell import SKIRTING, Style, build_frame, build_shell, draw_style
from aapt_fast.worlds.rooms.surfaces import Ball, Material, Piece, Quad

REACH = 0.75  # metres around a thing on which it may have a shadow
DOOR_CLEAR = 1.3  # metres before a door where nothing stands

Box = tuple[np.ndarray, np.ndarray]
Hides = Callable[[np.ndarray, np.ndarray], bool]
"""True if the first video frame shows nothing between a low and a high corner, each [3]."""


@dataclass(frozen=True)
class Thing:
    """A piece in its place."""

    piece: Piece
    low: np.ndarray  # [3] metres
    high: np.ndarray
    solid: bool  # a body cannot pass

    def overlaps(self, low: np.ndarray, high: np.ndarray) -> bool:
        """True if it has a part in common with the box between two corners, each [3]."""
        return bool((self.low < high).all() and (low < self.high).all())


@dataclass(frozen=True)
class Furnished:
    """A room with everything in it."""

    style: Style
    things: tuple[Thing, ...]
    lamp: np.ndarray  # [3] metres

    @property
    def boxes(self) -> list[Box]:
        """Boxes that cast shadows."""
        return [box for thing in self.things for box in thing.piece.boxes]


@dataclass(frozen=True)
class House:
    """A plan, and what is in its rooms."""

    plan: Plan
    rooms: tuple[Furnished, ...]
    wood: tuple[Material, Material, Material]  # of the door leaves, their handles and all frames

    def quads_of(self, room: int) -> list[Quad]:
        """All quads of a room but those of its doors."""
        doors = [self.plan.doors[number] for number in self.plan.doors_of(room)]
        shell = build_shell(self.plan.rooms[room], self.rooms[room].style, doors)
        return shell + [quad for thing in self.rooms[room].things for quad in thing.piece.quads]

    def balls_of(self, room: int) -> list[Ball]:
        """All balls of a room."""
        return [ball for thing in self.rooms[room].things for ball in thing.piece.balls]

    def frame_of(self, door: int) -> list[Quad]:
        """The frame of a door."""
        return build_frame(self.plan.doors[door], self.wood[2]).quads

    def obstacles(self, room: int) -> np.ndarray:
        """Footprints [N, 4] (low x, low z, high x, high z) of the solid things in a room."""
        found = [(t.low[0], t.low[2], t.high[0], t.high[2]) for t in self.rooms[room].things if t.solid]
        return np.array(found, float).reshape(-1, 4)


@dataclass(frozen=True)
class Known:
    """The part that another future of a house keeps: all that the first video frame may show, and the camera's way."""

    rooms: frozenset[int]  # rooms that the frame shows a part of
    hides: Hides
    way: np.ndarray  # [N, 2] x, z of the camera


def make_house(seed: int, future: int = 0, known: Known | None = None) -> House:
    """House number `seed` as it is, or another of its futures, which keeps what is `known`."""
    plan = make_plan(seed)
    palette = Palette(np.random.default_rng([seed, 2]))
    leaf = Material("door", palette.wood() if palette.rng.random() < 0.6 else palette.soft(0.6, 0.95))
    metal = Material("plain", (tint(0.13, palette.between(0, 0.6), 0.8),) * 3)
    frame = Material("wood", palette.wood(), 0.8)
    rooms = tuple(_furnish(plan, seed, number, future, known) for number in range(len(plan.rooms)))
    return House(plan, rooms, (leaf, metal, frame))


def _furnish(plan: Plan, seed: int, number: int, future: int, known: Known | None) -> Furnished:
    """One room of a house in one of its futures."""
    room, doors = plan.rooms[number], [plan.doors[door] for door in plan.doors_of(number)]
    palette = Palette(np.random.default_rng([seed, 3, number]))
    if future == 0 or known is None:
        return _fill(_Filling(room, doors, palette), draw_style(palette))
    others = Palette(np.random.default_rng([seed, 4, number, future]))
    if number not in known.rooms:
        return _fill(_Filling(room, doors, others, way=known.way), draw_style(others))
    style = draw_style(palette)
    as_it_is = _fill(_Filling(room, doors, palette), style)
    others.hue = palette.hue
    filling = _Filling(room, doors, others, way=known.way, hides=known.hides)
    filling.things = [thing for thing in as_it_is.things if not filling.is_hidden(thing.low, thing.high)]
    return _fill(filling, style)


class _Filling:
    """Puts things into a room, each where it fits."""

    def __init__(
        self,
        room: Room,
        doors: Sequence[Door],
        palette: Palette,
        way: np.ndarray | None = None,
        hides: Hides | None = None,
    ) -> None:
        self.room, self.doors, self.palette = room, doors, palette
        self._way, self._hides = way, hides
        self.things: list[Thing] = []

    def is_hidden(self, low: np.ndarray, high: np.ndarray) -> bool:
        """True if the first video frame shows nothing of the box and of its shadow; always, where any is allowed."""
        return self._hides is None or self._hides(low - REACH, high + REACH)

    def put(self, piece: Piece, solid: bool, gap: float = 0.04) -> bool:
        """Put a piece where it is, if nothing else is there."""
        low, high = piece.bounds()
        margin = np.array([gap, 0.02, gap])
        if any(thing.overlaps(low - margin, high + margin) for thing in self.things):
            return False
        if not self.room.holds(low[[0, 2]]) or not self.room.holds(high[[0, 2]]) or not self.is_hidden(low, high):
            return False
        if solid and not self._leaves_the_way(low, high):
            return False
        self.things.append(Thing(piece, low, high, solid))
        return True

    def _leaves_the_way(self, low: np.ndarray, high: np.ndarray) -> bool:
        for door in self.doors:
            middle = door.place
            reach = np.full(2, DOOR_WIDTH + 0.1)
            reach[door.axis] = DOOR_CLEAR
            if (low[[0, 2]] < middle + reach).all() and (middle - reach < high[[0, 2]]).all():
                return False
        if self._way is None:
            return True
        nearest = np.clip(self._way, low[[0, 2]], high[[0, 2]])
        return bool((np.linalg.norm(self._way - nearest, axis=1) > BODY + 0.05).all())

    def against_wall(self, piece: Piece, height: float = 0.0, solid: bool = True) -> bool:
        """Try one place for a piece with its back to a wall; never above a door."""
        turn, (x0, z0), (x1, z1) = int(self.palette.rng.integers(4)), self.room.low, self.room.high
        low, high = piece.bounds()
        half = max(high[0], -low[0])
        length = (x1 - x0 if turn % 2 == 0 else z1 - z0) / 2 - half - 0.02
        if length <= 0:
            return False
        aside, (x, z) = self.palette.between(-length, length), self.room.centre
        gap = 0.02 if solid else 0.0
        origin = {
            0: (x + aside, z1 - gap),
            1: (x1 - gap, z + aside),
            2: (x + aside, z0 + gap),
            3: (x0 + gap, z + aside),
        }
        place = origin[turn]
        if not solid and any(
            abs(place[door.axis] - door.at) < 0.3 and abs(place[1 - door.axis] - door.along) < half + 0.65
            for door in self.doors
        ):
            return False
        return self.put(piece.placed((place[0], height, place[1]), turn), solid)


def _fill(filling: _Filling, style: Style) -> Furnished:
    """Fill a room: furniture at the walls, a rug, things in the middle if it is large, pictures, and a lamp."""
    palette, room = filling.palette, filling.room
    size = np.array(room.high) - np.array(room.low)
    wanted = int(palette.rng.integers(5, 9))
    have = sum(thing.solid for thing in filling.things)
    for _ in range(6 * wanted):
        if have >= wanted:
            break
        maker = WALL_PIECES[int(palette.rng.integers(len(WALL_PIECES)))]
        have += filling.against_wall(maker(palette))
    if size.min() > 4.6:
        maker = FREE_PIECES[int(palette.rng.integers(len(FREE_PIECES)))]
        x, z = room.centre + palette.rng.uniform(-0.4, 0.4, 2)
        filling.put(maker(palette).placed((x, 0, z), int(palette.rng.integers(4))), True, gap=0.7)
    for _ in range(2):
        half = palette.rng.uniform(0.6, 1.3, 2)
        x, z = room.centre + palette.rng.uniform(-0.6, 0.6, 2)
        rug = Material(f"rug{int(palette.rng.integers(4))}", palette.bright())
        filling.put(_flat_rug(half, rug).placed((x, 0, z), 0), False)
    for _ in range(int(palette.rng.integers(10, 18))):
        piece, height = _picture(palette)
        filling.against_wall(piece, height, solid=False)
    x, z = room.centre
    lamp = np.array([x, room.height - 0.3, z])
    return Furnished(style, (*filling.things, _hanging_lamp(style, lamp, room.height)), lamp)


def _flat_rug(half: np.ndarray, material: Material) -> Piece:
    """A rug; `half` [2] of its size."""
    piece = Piece()
    corner = np.array([-half[0], 0.012, -half[1]])
    piece.quads.append(Quad(corner, np.array([2 * half[0], 0, 0]), np.array([0, 0, 2 * half[1]]), material))
    piece.boxes.append((corner - np.array([0, 0.012, 0]), -corner * np.array([1, -1, 1])))
    return piece


def _picture(palette: Palette) -> tuple[Piece, float]:
    """A framed picture, a clock or a window, and the height of its lower edge."""
    piece, kind = Piece(), palette.rng.random()
    width, height = palette.between(0.5, 1.0), palette.between(0.5, 0.95)
    art = Material(palette.pick(POSTERS), palette.bright())
    if kind < 0.12:
        white = tint(0.1, 0.05, 0.95)
        width = height = 0.42
        art = Material("clock", (white, tint(0, 0.2, 0.15), white))
    elif kind < 0.35:
        width, height = palette.between(0.9, 1.3), 1.15
        sky = tint(0.57, palette.between(0.3, 0.6), 0.95)
        art = Material("view", (sky, tint(0.1, 0.03, 1), tint(palette.between(0.2, 0.4), 0.6, 0.45)), glow=0.85)
    frame = Material("wood", palette.wood(), 0.5)
    low = 1.55 - height / 2 + palette.between(-0.12, 0.12)
    piece.box((-width / 2 - 0.05, 0, -0.02), (width / 2 + 0.05, height + 0.1, 0), frame, faces="xXyYz")
    piece.box((-width / 2, 0.05, -0.03), (width / 2, height + 0.05, -0.02), art, art, faces="z")
    return piece, max(low, SKIRTING)


def _hanging_lamp(style: Style, lamp: np.ndarray, height: float) -> Thing:
    """The lamp of a room, at `lamp` [3], on a wire from the ceiling."""
    piece = Piece()
    glow = Material("plain", (style.lamp,) * 3, glow=1.0)
    wire = Material("plain", (tint(0, 0, 0.15),) * 3)
    x, y, z = lamp
    piece.box((x - 0.012, y, z - 0.012), (x + 0.012, height, z + 0.012), wire, faces="xXzZ")
    piece.ball((x, y - 0.05, z), 0.17, glow)
    low, high = piece.bounds()
    piece.boxes.clear()  # it has no shadow
    return Thing(piece, low, high, False)
