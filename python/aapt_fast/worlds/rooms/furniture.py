# SPDX-License-Identifier: Apache-2.0
"""Pieces of furniture, made of boxes and balls.

A piece stands on the floor at its origin, with its back at z = 0 and its front towards -z. Pieces of `WALL_PIECES`
stand with their back to a wall, pieces of `FREE_PIECES` anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from aapt_fast.worlds.rooms.colours import Palette, tint
from aapt_fast.worlds.rooms.pictures import POSTERS
from aapt_fast.worlds.rooms.surfaces import Material, Piece

BLACK = np.array([0.06, 0.06, 0.07])
WHITE = np.array([0.95, 0.94, 0.9])


def _bookcase(palette: Palette) -> Piece:
    piece, wood = Piece(), palette.wooden()
    width, height = palette.between(0.8, 1.2), palette.between(1.5, 2.1)
    spines = tuple(palette.bright())
    front = Material("books", (wood.colours[0], spines[0], spines[1]))
    piece.box((-width / 2, 0, -0.32), (width / 2, height, 0), wood, faces="xXy")
    for number in range(2):  # two tiles of three shelves
        low, high = height * number / 2, height * (number + 1) / 2
        piece.box((-width / 2, low, -0.32), (width / 2, high, -0.31), wood, front, faces="z")
    return piece


def _chest(palette: Palette) -> Piece:
    piece, wood = Piece(), palette.wooden()
    width, height = palette.between(0.7, 1.1), palette.between(0.7, 1.0)
    piece.box((-width / 2, 0, -0.45), (width / 2, height, 0), wood, replace(wood, texture="drawers", metres=0), "xXyz")
    kind = palette.pick(("ball", "plant", "lamp", "picture"))
    if kind == "ball":
        radius = palette.between(0.1, 0.17)
        piece.ball((palette.between(-0.2, 0.2), height + radius, -0.22), radius, Material("ball", palette.bright()))
    elif kind == "plant":
        _plant(piece, palette, height, 0.13, -0.22)
    elif kind == "lamp":
        piece.box((-0.03, height, -0.25), (0.03, height + 0.25, -0.19), palette.wooden())
        piece.ball((0, height + 0.36, -0.22), 0.14, Material("plain", (tint(0.12, 0.3, 1),) * 3, glow=0.9))
    else:
        art = Material(palette.pick(POSTERS), palette.bright())
        piece.box((-0.2, height, -0.1), (0.2, height + 0.35, -0.05), palette.wooden(), art, "xXyz")
    return piece


def _cupboard(palette: Palette) -> Piece:
    piece, wood = Piece(), palette.wooden()
    width, height = palette.between(0.9, 1.3), palette.between(1.7, 2.1)
    if palette.rng.random() < 0.4:
        wood = replace(wood, colours=palette.bright())
    piece.box((-width / 2, 0, -0.5), (width / 2, height, 0), wood, replace(wood, texture="cupboard", metres=0), "xXyz")
    return piece


def _sofa(palette: Palette) -> Piece:
    piece, cloth = Piece(), palette.cloth()
    half = palette.between(0.75, 1.05)
    piece.box((-half, 0, -0.8), (half, 0.42, -0.2), cloth, faces="xXyz")
    piece.box((-half, 0, -0.22), (half, 0.85, 0), cloth, faces="xXyz")
    for side in (-1, 1):
        low, high = sorted((side * half, side * (half + 0.2)))
        piece.box((low, 0, -0.8), (high, 0.6, 0), cloth, faces="xXyz")
    cushion = Material(palette.pick(("rug1", "dots", "ball", *POSTERS)), palette.bright())
    for place in (-0.5, 0.45):
        x = half * place
        piece.box((x - 0.2, 0.42, -0.36), (x + 0.2, 0.8, -0.23), cushion, faces="xXyz")
    return piece


def _bed(palette: Palette) -> Piece:
    piece, wood = Piece(), palette.wooden()
    sheet = Material(palette.pick(("fabric", "rug0", "rug2", "rug3", "dots")), palette.bright(), 0.9)
    half = palette.between(0.5, 0.8)
    piece.box(
        (-half - 0.05, 0, -0.06), (half + 0.05, 1.0, 0), replace(wood, texture="panels", metres=0.5), faces="xXyz"
    )
    piece.box((-half, 0.1, -1.9), (half, 0.32, -0.06), wood, faces="xXz")
    piece.box((-half, 0.32, -1.88), (half, 0.55, -0.06), sheet, faces="xXyz")
    piece.box((-half * 0.7, 0.55, -0.5), (half * 0.7, 0.66, -0.1), Material("fabric", (WHITE, 0.9 * WHITE, WHITE), 0.5))
    return piece


def _screen(palette: Palette) -> Piece:
    piece, wood = Piece(), palette.wooden()
    piece.box((-0.7, 0, -0.4), (0.7, 0.5, 0), wood, replace(wood, texture="cupboard", metres=0), "xXyz")
    black = Material("plain", (BLACK,) * 3)
    picture = Material("screen", (tint(0.3, 0.6, 0.5), tint(0.58, 0.6, 1), tint(0.08, 0.3, 0.4)), glow=0.8)
    piece.box((-0.55, 0.56, -0.2), (0.55, 1.2, -0.14), black, picture, "xXyz")
    piece.box((-0.1, 0.5, -0.2), (0.1, 0.56, -0.14), black, faces="xXz")
    return piece


def _plant(piece: Piece, palette: Palette, floor: float, size: float, z: float) -> None:
    """A pot with a round plant, on a floor of that height."""
    pot = Material(palette.pick(("plain", "tiles", "stripes")), palette.bright(), size)
    leaf = tint(palette.between(0.22, 0.42), palette.between(0.5, 0.8), palette.between(0.35, 0.7))
    leaves = Material("leaves", (leaf, 0.5 * leaf, tint(palette.rng.random(), 0.6, 0.9)))
    piece.box((-0.7 * size, floor, z - 0.7 * size), (0.7 * size, floor + 1.3 * size, z + 0.7 * size), pot)
    for x, y, radius in ((0, 2.6, 1.0), (0.6, 2.1, 0.7), (-0.65, 2.2, 0.65), (0.1, 3.5, 0.75)):
        piece.ball((x * size, floor + y * size, z + 0.3 * x * size), radius * size, leaves)


def _house_plant(palette: Palette) -> Piece:
    piece = Piece()
    _plant(piece, palette, 0.0, palette.between(0.25, 0.38), -0.4)
    return piece


def _floor_lamp(palette: Palette) -> Piece:
    piece = Piece()
    metal = Material("plain", (tint(0.1, 0.2, palette.between(0.15, 0.6)),) * 3)
    height = palette.between(1.3, 1.6)
    piece.box((-0.15, 0, -0.4), (0.15, 0.04, -0.1), metal)
    piece.box((-0.02, 0.04, -0.27), (0.02, height, -0.23), metal, faces="xXzZ")
    shade = tint(palette.between(0.05, 0.17), palette.between(0.15, 0.6), 1.0)
    piece.ball((0, height + 0.15, -0.25), palette.between(0.17, 0.24), Material("plain", (shade,) * 3, glow=0.95))
    return piece


def _globe(palette: Palette) -> Piece:
    piece = Piece()
    stone = Material("marble", palette.soft(0.7, 0.95), 0.6)
    height, radius = palette.between(0.6, 1.0), palette.between(0.2, 0.32)
    piece.box((-0.22, 0, -0.52), (0.22, height, -0.08), stone)
    piece.ball((0, height + radius, -0.3), radius, Material(palette.pick(("ball", "marble", "rug1")), palette.bright()))
    return piece


def _table(palette: Palette) -> Piece:
    piece, wood = Piece(), palette.wooden()
    x, z = palette.between(0.4, 0.7), palette.between(0.35, 0.5)
    top = palette.between(0.66, 0.76)
    piece.box((-x, top, -z), (x, top + 0.05, z), wood, faces="xXyYzZ")
    for sx in (-1, 1):
        for sz in (-1, 1):
            a, b = sx * (x - 0.07), sz * (z - 0.07)
            piece.box((a - 0.03, 0, b - 0.03), (a + 0.03, top, b + 0.03), wood, faces="xXzZ")
    radius = palette.between(0.08, 0.15)
    piece.ball((palette.between(-0.2, 0.2), top + 0.05 + radius, 0), radius, Material("ball", palette.bright()))
    return piece


def _blocks(palette: Palette) -> Piece:
    """Toy blocks with pictures."""
    piece, size = Piece(), palette.between(0.32, 0.45)
    names = [palette.pick(POSTERS) for _ in range(3)]
    materials = [Material(name, palette.bright()) for name in names]
    piece.box((-size, 0, -size / 2), (0, size, size / 2), materials[0])
    piece.box((0.03, 0, -size / 2), (size + 0.03, size, size / 2), materials[1])
    piece.box((-size * 0.45, size, -size / 2), (size * 0.55, 2 * size, size / 2), materials[2])
    return piece


WALL_PIECES: tuple[Callable[[Palette], Piece], ...] = (
    _bookcase, _chest, _cupboard, _sofa, _bed, _screen, _house_plant, _floor_lamp, _globe,
)  # fmt: skip
FREE_PIECES: tuple[Callable[[Palette], Piece], ...] = (_table, _blocks)
