# SPDX-License-Identifier: Apache-2.0
"""Library of procedural textures: tiles of three masks, from which a surface makes its own colours.

A texel holds (first, second, shade) in 0..1. A surface with the colours c0, c1, c2 shows
`shade * (c0 + first * (c1 - c0) + second * (c2 - c0))`. Tiles repeat without a seam unless they fill a surface once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from aapt_fast.worlds.rooms.pictures import PICTURES, painted

TEXELS = 128  # of a tile, along each side
LEVELS = 8  # of the mip chain, 128 down to 1 texel

Masks = tuple[np.ndarray, np.ndarray, np.ndarray]
"""First, second and shade, each [TEXELS, TEXELS] or broadcast to it; row 0 is the bottom."""


@dataclass(frozen=True)
class Library:
    """All tiles with their mip chains in one array, for lookups by texture, level, row and column."""

    pairs: np.ndarray  # uint64 [N], eight bytes: first, second, shade, 0 of a texel, and of the one to its right
    offsets: np.ndarray  # int32 [textures * LEVELS], of the first texel of a level
    names: dict[str, int]


@functools.cache
def library() -> Library:
    """The textures, drawn once per process."""
    makers: dict[str, Callable[[np.random.Generator], Masks]]
    makers = {**SURFACES, **{name: functools.partial(_picture, number) for number, name in enumerate(PICTURES)}}
    parts, offsets, count = [], [], 0
    for number, maker in enumerate(makers.values()):
        masks = maker(np.random.default_rng(number))
        tile = np.stack([np.broadcast_to(mask, (TEXELS, TEXELS)) for mask in masks], axis=-1).clip(0, 1)
        for _ in range(LEVELS):
            offsets.append(count)
            nothing = np.zeros((*tile.shape[:2], 1))
            pair = np.concatenate([tile, nothing, np.roll(tile, -1, axis=1), nothing], axis=-1)
            parts.append((pair * 255 + 0.5).astype(np.uint8).reshape(-1, 8))
            count += len(parts[-1])
            if len(tile) > 1:
                tile = tile.reshape(len(tile) // 2, 2, len(tile) // 2, 2, 3).mean((1, 3))
    return Library(
        np.concatenate(parts).view(np.uint64)[:, 0],
        np.array(offsets, np.int32),
        {name: n for n, name in enumerate(makers)},
    )


def grid() -> tuple[np.ndarray, np.ndarray]:
    """Places u [1, TEXELS] and v [TEXELS, 1] of the texels' centres, in 0..1."""
    place = (np.arange(TEXELS) + 0.5) / TEXELS
    return place[None, :], place[:, None]


def smooth_noise(rng: np.random.Generator, u_waves: float, v_waves: float) -> np.ndarray:
    """Noise [TEXELS, TEXELS] in 0..1 without a seam, with about that many waves along each side."""
    spectrum = np.fft.rfft2(rng.standard_normal((TEXELS, TEXELS)))
    rows, columns = np.fft.fftfreq(TEXELS) * TEXELS, np.fft.rfftfreq(TEXELS) * TEXELS
    spectrum *= np.exp(-0.5 * ((rows[:, None] / v_waves) ** 2 + (columns[None, :] / u_waves) ** 2))
    noise = np.fft.irfft2(spectrum, s=(TEXELS, TEXELS))
    return np.clip(0.5 + 0.22 * (noise - noise.mean()) / noise.std(), 0, 1)


def _line(distance: np.ndarray, width: float) -> np.ndarray:
    """1 on a line, 0 beyond its half width; the edge is one texel wide."""
    return np.clip((width / 2 - np.abs(distance)) * TEXELS + 0.5, 0, 1)


def _apart(place: np.ndarray, period: float) -> np.ndarray:
    """Signed distance to the nearest multiple of `period`."""
    return (place + period / 2) % period - period / 2


def _cells(rng: np.random.Generator, row: np.ndarray, column: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """A random number in 0..1 for each cell of a grid that repeats."""
    return rng.random((rows, columns))[row.astype(int) % rows, column.astype(int) % columns]


def _planks(rng: np.random.Generator) -> Masks:
    u, v = grid()
    row = np.floor(v * 6)
    shift = rng.random(6)[row.astype(int)]
    along = (u + shift) * 1.0
    grain = smooth_noise(rng, 3, 40)
    tone = _cells(rng, row + 0 * u, np.floor(along * 2), 6, 2)
    joint = np.maximum(_line(_apart(v, 1 / 6), 0.014), _line(_apart(along, 0.5), 0.012))
    return tone * 0.7 + 0.3 * grain, np.zeros((1, 1)), (0.82 + 0.18 * grain) * (1 - 0.55 * joint)


def _parquet(rng: np.random.Generator) -> Masks:
    """Squares of four strips each, in turns upright and level."""
    u, v = grid()
    upright = (np.floor(u * 4) + np.floor(v * 4)) % 2
    levels = _cells(rng, np.floor(v * 16) + 0 * u, np.floor(u * 4) + 0 * v, 16, 4)
    uprights = _cells(rng, np.floor(v * 4) + 0 * u, np.floor(u * 16) + 0 * v, 4, 16)
    between = _line(_apart(np.where(upright > 0, u, v), 1 / 16), 0.01)
    joint = np.maximum(between, np.maximum(_line(_apart(u, 0.25), 0.012), _line(_apart(v, 0.25), 0.012)))
    tone = 0.35 * upright + 0.5 * np.where(upright > 0, uprights, levels)
    return tone, np.zeros((1, 1)), (0.85 + 0.15 * smooth_noise(rng, 20, 20)) * (1 - 0.5 * joint)


def _tiles(rng: np.random.Generator) -> Masks:
    u, v = grid()
    grout = np.maximum(_line(_apart(u, 0.25), 0.02), _line(_apart(v, 0.25), 0.02))
    tone = _cells(rng, np.floor(v * 4) + 0 * u, np.floor(u * 4) + 0 * v, 4, 4)
    bevel = np.maximum(np.abs(_apart(u + 0.125, 0.25)), np.abs(_apart(v + 0.125, 0.25))) / 0.125
    return 0.6 * tone, grout, 0.92 + 0.08 * smooth_noise(rng, 8, 8) - 0.08 * bevel**6


def _checker(rng: np.random.Generator) -> Masks:
    u, v = grid()
    dark = (np.floor(u * 4) + np.floor(v * 4)) % 2
    seam = np.maximum(_line(_apart(u, 0.25), 0.012), _line(_apart(v, 0.25), 0.012))
    return dark, 0.25 * smooth_noise(rng, 9, 5), (1 - 0.25 * seam) * (0.9 + 0.1 * smooth_noise(rng, 5, 9))


def _carpet(rng: np.random.Generator) -> Masks:
    u, v = grid()
    diamond = _line(np.abs(_apart(u, 0.25)) + np.abs(_apart(v, 0.25)) - 0.07, 0.03)
    return diamond * 0.8, np.zeros((1, 1)), 0.78 + 0.22 * rng.random((TEXELS, TEXELS))


def _brick(rng: np.random.Generator) -> Masks:
    u, v = grid()
    row = np.floor(v * 10)
    along = u + 0.125 * (row % 2)
    mortar = np.maximum(_line(_apart(v, 0.1), 0.016), _line(_apart(along, 0.25), 0.014))
    tone = _cells(rng, row + 0 * u, np.floor(along * 4), 10, 4)
    return 0.8 * tone, mortar, 0.85 + 0.15 * smooth_noise(rng, 25, 25)


def _stripes(rng: np.random.Generator) -> Masks:
    u, v = grid()
    wide = np.clip(np.sin(2 * np.pi * u * 4) * 6, -0.5, 0.5) + 0.5
    thin = _line(_apart(u + 0.0625, 0.125), 0.012) + 0 * v
    return wide + 0 * v, thin, 0.95 + 0.05 * smooth_noise(rng, 30, 30)


def _ornament(rng: np.random.Generator) -> Masks:
    u, v = grid()
    flower = np.zeros((TEXELS, TEXELS))
    heart = np.zeros((TEXELS, TEXELS))
    for shift in (0.0, 0.25):
        x, y = _apart(u + shift, 0.5), _apart(v + shift, 0.5)
        radius, angle = np.hypot(x, y), np.arctan2(y, x)
        flower = np.maximum(flower, np.clip((0.09 + 0.05 * np.cos(5 * angle) - radius) * 90, 0, 1))
        heart = np.maximum(heart, np.clip((0.035 - radius) * 90, 0, 1))
    return flower * (1 - heart), heart, 0.95 + 0.05 * smooth_noise(rng, 30, 30)


def _dots(rng: np.random.Generator) -> Masks:
    u, v = grid()
    dots = [np.clip((0.045 - np.hypot(_apart(u + s, 0.25), _apart(v + s, 0.25))) * TEXELS, 0, 1) for s in (0.0, 0.125)]
    return dots[0], dots[1], 0.95 + 0.05 * smooth_noise(rng, 30, 30)


def _plaster(rng: np.random.Generator) -> Masks:
    return 0.35 * smooth_noise(rng, 3, 3), np.zeros((1, 1)), 0.9 + 0.1 * smooth_noise(rng, 28, 28)


def _panels(rng: np.random.Generator) -> Masks:
    """Wooden panelling: one panel with a raised field, and grain."""
    u, v = grid()
    grain = smooth_noise(rng, 40, 3)
    edge = np.minimum(np.minimum(u, 1 - u), np.minimum(v, 1 - v))
    groove = np.maximum(_line(edge - 0.12, 0.02), _line(edge, 0.012))
    lit = _line(edge - 0.145, 0.014) * (v > u)
    return 0.6 * grain, 0.3 * lit, (0.85 + 0.15 * grain) * (1 - 0.5 * groove)


def _wood(rng: np.random.Generator) -> Masks:
    rings = 0.5 + 0.5 * np.sin(40 * smooth_noise(rng, 1.2, 5))
    grain = smooth_noise(rng, 2, 45)
    return 0.55 * rings + 0.35 * grain, np.zeros((1, 1)), 0.88 + 0.12 * grain


def _fabric(rng: np.random.Generator) -> Masks:
    u, v = grid()
    weave = 0.5 + 0.25 * (np.sin(2 * np.pi * 32 * u) + np.sin(2 * np.pi * 32 * v))
    plaid = 0.5 * ((u * 4) % 1 < 0.3) + 0.5 * ((v * 4) % 1 < 0.3)
    return plaid, np.zeros((1, 1)), 0.8 + 0.12 * weave + 0.08 * smooth_noise(rng, 4, 4)


def _marble(rng: np.random.Generator) -> Masks:
    veins = np.exp(-((np.sin(14 * smooth_noise(rng, 2, 2) + 6 * smooth_noise(rng, 6, 6)) / 0.18) ** 2))
    return 0.8 * veins, np.zeros((1, 1)), 0.95 + 0.05 * smooth_noise(rng, 5, 5)


def _leaves(rng: np.random.Generator) -> Masks:
    clumps = smooth_noise(rng, 9, 9)
    return (clumps > 0.55) * 0.8, 0.3 * smooth_noise(rng, 20, 20), 0.55 + 0.45 * smooth_noise(rng, 12, 12)


def _books(rng: np.random.Generator) -> Masks:
    """Three shelves of books; the boards have the first colour of the surface."""
    u, v = grid()
    first, second, shade = np.zeros((TEXELS, TEXELS)), np.zeros((TEXELS, TEXELS)), np.full((TEXELS, TEXELS), 0.25)
    for shelf in range(3):
        left, low = 0.01, shelf / 3 + 0.03
        while left < 0.95:
            width, height = rng.uniform(0.03, 0.08), rng.uniform(0.18, 0.27)
            inside = (u >= left) & (u < min(left + width, 0.99)) & (v >= low) & (v < low + height)
            tint = rng.random(2) * (rng.random(2) < 0.7)
            band = (np.abs(v - low - height * 0.75) < 0.014) | (np.abs(v - low - height * 0.2) < 0.008)
            first[inside], second[inside] = tint[0], tint[1] * (1 - tint[0])
            rounded = 1 - 0.35 * np.abs((u - left) / width * 2 - 1) ** 3
            shade = np.where(inside, rounded * rng.uniform(0.6, 1.0) * np.where(band, 1.25, 1.0), shade)
            left += width + 0.004
    board = np.abs(_apart(v, 1 / 3)) < 0.028
    return np.where(board, 0, first), np.where(board, 0, second), np.where(board, 0.9, shade)


def _drawers(rng: np.random.Generator) -> Masks:
    """Front of a chest with three drawers and their knobs, which have the third colour."""
    u, v = grid()
    gap = np.maximum(_line(_apart(v, 1 / 3), 0.02), np.maximum(_line(u, 0.04), _line(1 - u, 0.04)))
    grain = smooth_noise(rng, 3, 40)
    height = _apart(v + 1 / 6, 1 / 3)
    knobs = sum(np.clip((0.028 - np.hypot(u - x, height)) * TEXELS, 0, 1) for x in (0.27, 0.73))
    return 0.6 * grain * (1 - knobs), knobs, (0.86 + 0.14 * grain) * (1 - 0.65 * gap)


def _cupboard(rng: np.random.Generator) -> Masks:
    """Front with two doors, each with a frame and a handle."""
    u, v = grid()
    half = np.abs(u - 0.5)
    edge = np.minimum(np.minimum(half, 0.5 - half), np.minimum(v, 1 - v))
    groove = np.maximum(_line(edge - 0.09, 0.02), _line(edge, 0.015))
    handle = _line(half - 0.05, 0.025) * (np.abs(v - 0.5) < 0.08)
    grain = smooth_noise(rng, 40, 3)
    return 0.6 * grain * (1 - handle), handle, (0.86 + 0.14 * grain) * (1 - 0.55 * groove)


def _door(rng: np.random.Generator) -> Masks:
    """Door leaf with four panels; the handle is a thing of its own."""
    u, v = grid()
    x = np.minimum(np.abs(u - 0.28), np.abs(u - 0.72))
    y = np.minimum(np.abs(v - 0.27) - 0.19, np.abs(v - 0.74) - 0.2)
    edge = np.maximum(x - 0.15, y)
    groove, field = _line(edge, 0.025), np.clip(-edge * 20, 0, 1)
    grain = smooth_noise(rng, 30, 3)
    return 0.35 * grain + 0.35 * field, np.zeros((1, 1)), (0.88 + 0.12 * grain) * (1 - 0.45 * groove)


def _plain(rng: np.random.Generator) -> Masks:
    return np.zeros((1, 1)), np.zeros((1, 1)), np.ones((1, 1))


def _rug(rng: np.random.Generator, kind: int) -> Masks:
    """A rug with a border; it fills its surface once."""
    u, v = grid()
    edge = np.minimum(np.minimum(u, 1 - u), np.minimum(v, 1 - v))
    if kind == 0:
        field = (np.floor(u * 8) + np.floor(v * 8)) % 2
    elif kind == 1:
        field = (np.hypot(u - 0.5, v - 0.5) * 9 % 1 < 0.5) * 1.0
    elif kind == 2:
        field = ((np.abs(u - 0.5) + np.abs(v - 0.5)) * 8 % 1 < 0.5) * 1.0
    else:
        field = np.clip(np.sin(2 * np.pi * (u * 6 + 0.12 * np.sin(2 * np.pi * v * 3))) * 4, 0, 1)
    border = (edge < 0.1) * 1.0
    dashes = border * ((np.floor(u * 32) + np.floor(v * 32)) % 2)
    return np.where(border > 0, dashes * 0.5, field), border * (1 - dashes), 0.82 + 0.18 * rng.random((TEXELS, TEXELS))


def _ball(rng: np.random.Generator) -> Masks:
    u, v = grid()
    return (np.floor(u * 8) + np.floor(v * 4)) % 2, (np.abs(v - 0.5) < 0.03) * 1.0, np.ones((1, 1))


def _picture(number: int, rng: np.random.Generator) -> Masks:
    u, v = grid()
    return painted(number, u, v, smooth_noise(rng, 3, 3))


SURFACES: dict[str, Callable[[np.random.Generator], Masks]] = {
    "plain": _plain, "planks": _planks, "parquet": _parquet, "tiles": _tiles, "checker": _checker, "carpet": _carpet,
    "brick": _brick, "stripes": _stripes, "ornament": _ornament, "dots": _dots, "plaster": _plaster,
    "panels": _panels, "wood": _wood, "fabric": _fabric, "marble": _marble, "leaves": _leaves, "books": _books,
    "drawers": _drawers, "cupboard": _cupboard, "door": _door, "ball": _ball,
    **{f"rug{kind}": functools.partial(_rug, kind=kind) for kind in range(4)},
}  # fmt: skip
