# SPDX-License-Identifier: Apache-2.0
"""The shell of rooms: floors, walls with openings, skirting boards, door frames and door leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aapt_fast.worlds.rooms.colours import Palette, tint
from aapt_fast.worlds.rooms.plan import DOOR_HEIGHT, DOOR_WIDTH, WALL, Door, Room
from aapt_fast.worlds.rooms.surfaces import Material, Piece, Quad

FLOORS = (("planks", 1.2), ("parquet", 1.4), ("tiles", 1.5), ("checker", 1.6), ("carpet", 0.8), ("marble", 1.8))
WALLS = (("brick", 0.9), ("stripes", 0.9), ("ornament", 0.8), ("dots", 0.9), ("plaster", 1.5), ("plaster", 1.5))
LEAF = 0.045  # thickness of a door leaf
OPEN_ANGLE = 1.75  # radians of a leaf that is wide open
SKIRTING = 0.11


@dataclass(frozen=True)
class Style:
    """Materials of one room."""

    floor: Material
    wall: Material
    dado: Material | None  # the lower metre of the walls, if it differs
    ceiling: Material
    skirting: Material
    lamp: np.ndarray  # RGB [3] of the light


def draw_style(palette: Palette) -> Style:
    """The materials of a room."""
    floor, floor_metres = FLOORS[int(palette.rng.integers(len(FLOORS)))]
    wall, wall_metres = WALLS[int(palette.rng.integers(len(WALLS)))]
    floors = palette.wood() if floor in ("planks", "parquet") else palette.soft(0.5, 0.9)
    if floor == "checker":
        floors = (floors[0], 0.35 * floors[1], floors[2])
    walls = palette.soft()
    if wall == "brick":
        base = tint(palette.between(0.0, 0.08), palette.between(0.3, 0.6), palette.between(0.45, 0.75))
        walls = (base, 0.7 * base, tint(0.1, 0.1, 0.8))
    dado = None
    if wall != "brick" and palette.rng.random() < 0.5:
        kind = palette.pick(("panels", "tiles", "plaster"))
        dado = Material(kind, palette.wood() if kind == "panels" else palette.soft(0.5, 0.8), 0.9)
    white = tint(palette.hue, 0.05, 0.95)
    board = palette.wood() if palette.rng.random() < 0.5 else (white, 0.9 * white, white)
    return Style(
        Material(floor, floors, floor_metres),
        Material(wall, walls, wall_metres),
        dado,
        Material("plaster", (white, 0.93 * white, white), 2.0),
        Material("wood", board, 1.2),
        tint(palette.between(0.08, 0.15), palette.between(0.0, 0.16), 1.0),
    )


def build_shell(room: Room, style: Style, doors: Sequence[Door]) -> list[Quad]:
    """Floor, ceiling and walls of a room, with the openings of its `doors`."""
    (x0, z0), (x1, z1), top = room.low, room.high, room.height
    width, depth = x1 - x0, z1 - z0
    quads = [
        Quad(_at(x0, 0, z0), _at(width, 0, 0), _at(0, 0, depth), style.floor),
        Quad(_at(x0, top, z0), _at(0, 0, depth), _at(width, 0, 0), style.ceiling),
    ]
    sides = (  # axis that the wall is on, its place, where it begins and its direction, for one who looks at it
        (1, z1, _at(x0, 0, z1), _at(1, 0, 0), width),
        (0, x1, _at(x1, 0, z1), _at(0, 0, -1), depth),
        (1, z0, _at(x1, 0, z0), _at(-1, 0, 0), width),
        (0, x0, _at(x0, 0, z0), _at(0, 0, 1), depth),
    )
    for axis, place, begin, along, length in sides:
        openings = []
        for door in doors:
            if door.axis == axis and abs(door.at - place) < WALL:
                middle = abs(door.along - begin[2 if axis == 0 else 0])
                openings.append((middle - DOOR_WIDTH / 2, middle + DOOR_WIDTH / 2))
        quads += _wall(begin, along, length, top, style, sorted(openings))
    return quads


def _at(x: float, y: float, z: float) -> np.ndarray:
    return np.array([x, y, z], float)


def _wall(
    begin: np.ndarray, along: np.ndarray, length: float, top: float, style: Style, openings: list[tuple[float, float]]
) -> list[Quad]:
    """One wall from the point `begin` on the floor, [3], in the direction `along`, [3], without its openings."""
    edges = [0.0, *(edge for opening in openings for edge in opening), length]
    inwards = np.cross(np.array([0.0, 1.0, 0.0]), along) * 0.015
    quads = []

    def add(start: float, end: float, low: float, high: float, material: Material, out: float = 0.0) -> None:
        corner = begin + along * start + np.array([0, low, 0]) + inwards * out
        quads.append(Quad(corner, along * (end - start), np.array([0, high - low, 0]), material))

    for start, end in zip(edges[::2], edges[1::2], strict=True):
        if style.dado is not None:
            add(start, end, 0, 0.9, style.dado)
            add(start, end, 0.9, 0.95, style.skirting, out=1.0)
        add(start, end, 0.9 if style.dado else 0.0, top, style.wall)
        add(start, end, 0, SKIRTING, style.skirting, out=1.0)
    for start, end in openings:
        add(start, end, DOOR_HEIGHT, top, style.wall)
    return quads


def build_frame(door: Door, wood: Material) -> Piece:
    """The casing around an opening, on both sides of the wall, and the lining inside."""
    piece, half, out = Piece(), DOOR_WIDTH / 2, WALL / 2 + 0.03
    for side in (-1, 1):
        inner, outer = sorted((side * half, side * (half + 0.09)))
        piece.box((inner, 0, -out), (outer, DOOR_HEIGHT + 0.09, out), wood, faces="xXzZ")
    piece.box((-half, DOOR_HEIGHT, -out), (half, DOOR_HEIGHT + 0.09, out), wood, faces="YzZ")
    piece.quads.append(Quad(_at(-half, 0.0, -WALL / 2), _at(2 * half, 0, 0), _at(0, 0, WALL), wood))
    return piece.placed(door.stands_at, 1 if door.axis == 0 else 0)


def build_leaf(door: Door, leaf: Material, handle: Material, opened: float, swing: float) -> list[Quad]:
    """The leaf of a door, `opened` by 0..1 into the room `second` (`swing` 1) or `first` (-1), with its handles."""
    angle = OPEN_ANGLE * opened * (3 - 2 * opened) * opened * swing
    closed, through = np.zeros(3), np.zeros(3)
    closed[0 if door.axis == 1 else 2] = -door.hinge
    through[2 if door.axis == 1 else 0] = 1.0
    out = closed * np.cos(angle) + through * np.sin(angle)
    normal = through * np.cos(angle) - closed * np.sin(angle)
    hinge = door.stands_at - closed * DOOR_WIDTH / 2
    up = _at(0, DOOR_HEIGHT, 0)
    quads = _slab(hinge, out * DOOR_WIDTH, up, normal * LEAF, leaf)
    for side in (-1, 1):
        knob = hinge + out * (DOOR_WIDTH - 0.16) + normal * side * (LEAF / 2 + 0.025) + _at(0, 1.0, 0)
        quads += _slab(knob, out * 0.11, _at(0, 0.035, 0), normal * 0.05, handle)
    return quads


def _slab(begin: np.ndarray, along: np.ndarray, up: np.ndarray, thick: np.ndarray, material: Material) -> list[Quad]:
    """The upright faces of a slab whose middle plane is the parallelogram of `along` and `up`; every array [3]."""
    if np.dot(np.cross(up, along), thick) < 0:
        thick = -thick
    half = thick / 2
    return [
        Quad(begin + half, along, up, material),
        Quad(begin + along - half, -along, up, material),
        Quad(begin - half, thick, up, material),
        Quad(begin + along + half, -thick, up, material),
    ]
