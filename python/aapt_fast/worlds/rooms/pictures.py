# SPDX-License-Identifier: Apache-2.0
"""Pictures for the walls: posters, paintings, a clock, a screen and the view from a window, as masks of a texture."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray
Painted: TypeAlias = tuple[Any, Any, Any]
"""First, second and shade, arrays that are broadcast to [N, N], or numbers."""

POSTERS = ("sun", "target", "waves", "mosaic", "face", "tower", "mountains", "letters", "spiral", "tree", "cat", "flag")
PICTURES = (*POSTERS, "clock", "screen", "view")


def painted(number: int, u: Array, v: Array, noise: Array) -> Painted:
    """Masks first, second and shade [N, N] of picture `number` at u [1, N] and v [N, 1]; v grows upwards."""
    first, second, shade = _PAINTERS[PICTURES[number]](u, v, noise)
    first, second = np.broadcast_to(first * 1.0, noise.shape), np.broadcast_to(second * 1.0, noise.shape)
    return first * (1 - np.clip(second, 0, 1)), second, shade * np.ones_like(noise)


def _disc(u: Array, v: Array, x: float, y: float, radius: float) -> Array:
    return np.clip((radius - np.hypot(u - x, v - y)) * 128 + 0.5, 0, 1)


def _box(u: Array, v: Array, x: float, y: float, width: float, height: float) -> Array:
    """1 in a box around (x, y)."""
    return (np.abs(u - x) < width / 2) * (np.abs(v - y) < height / 2) * 1.0


def _sun(u: Array, v: Array, noise: Array) -> Painted:
    angle = np.arctan2(v - 0.55, u - 0.5)
    return np.sin(12 * angle) > 0, _disc(u, v, 0.5, 0.55, 0.22), 1.0


def _target(u: Array, v: Array, noise: Array) -> Painted:
    radius = np.hypot(u - 0.5, v - 0.5)
    return (radius * 10 % 1 < 0.5) & (radius < 0.45), _disc(u, v, 0.5, 0.5, 0.06), 1.0


def _waves(u: Array, v: Array, noise: Array) -> Painted:
    height = v * 7 + 0.45 * np.sin(2 * np.pi * u * 2)
    return height % 1 < 0.5, (height % 3 < 0.3) * 1.0, 1.0


def _mosaic(u: Array, v: Array, noise: Array) -> Painted:
    cells = np.sin(np.floor(u * 7) * 12.9898 + np.floor(v * 7) * 78.233) * 43758.5453 % 1
    gap = ((u * 7 % 1) < 0.1) | ((v * 7 % 1) < 0.1)
    return (cells > 0.4) * 1.0, (cells > 0.75) * 1.0, np.where(gap, 0.35, 1.0)


def _face(u: Array, v: Array, noise: Array) -> Painted:
    eyes = np.maximum(_disc(u, v, 0.37, 0.6, 0.05), _disc(u, v, 0.63, 0.6, 0.05))
    mouth = (np.abs(np.hypot(u - 0.5, v - 0.5) - 0.22) < 0.025) & (v < 0.42)
    return _disc(u, v, 0.5, 0.5, 0.36), np.maximum(eyes, mouth), 1.0


def _tower(u: Array, v: Array, noise: Array) -> Painted:
    body = (np.abs(u - 0.5) < 0.06 + 0.22 * (1 - v) ** 3) & (v < 0.88) & (v > 0.08)
    rungs = body & ((v * 14 % 1) < 0.25)
    return body * 1.0, rungs * 1.0, 0.85 + 0.15 * v


def _mountains(u: Array, v: Array, noise: Array) -> Painted:
    far = 0.55 + 0.12 * np.sin(7 * u) + 0.05 * np.sin(23 * u)
    near = 0.32 + 0.1 * np.sin(5 * u + 2) + 0.04 * np.sin(17 * u)
    return np.where(v < near, 0.0, v < far), np.maximum(_disc(u, v, 0.72, 0.8, 0.09), (v < near) * 0.7), 0.7 + 0.3 * v


def _letters(u: Array, v: Array, noise: Array) -> Painted:
    """Lines of marks like writing, below a block."""
    row = np.floor(v * 16)
    cells = np.sin(np.floor(u * 18) * 91.7 + row * 37.1) * 9573.1 % 1
    text = (cells > 0.3) & ((v * 16 % 1) > 0.4) & (np.abs(u - 0.5) < 0.4) & (v < 0.5) & (v > 0.1)
    return text * 1.0, _box(u, v, 0.5, 0.72, 0.7, 0.28) * (0.5 + 0.5 * ((u * 9 + v * 9) % 1 < 0.5)), 1.0


def _spiral(u: Array, v: Array, noise: Array) -> Painted:
    radius, angle = np.hypot(u - 0.5, v - 0.5), np.arctan2(v - 0.5, u - 0.5)
    return ((radius * 8 + angle / (2 * np.pi)) % 1 < 0.5) & (radius < 0.46), _disc(u, v, 0.5, 0.5, 0.04), 1.0


def _tree(u: Array, v: Array, noise: Array) -> Painted:
    crown = np.maximum.reduce(
        [_disc(u, v, x, y, r) for x, y, r in ((0.5, 0.66, 0.2), (0.34, 0.56, 0.14), (0.66, 0.56, 0.14))]
    )
    trunk = _box(u, v, 0.5, 0.28, 0.08, 0.36)
    return np.maximum(crown * (0.6 + 0.4 * (noise > 0.5)), (v < 0.12) * 0.6), trunk, 1.0


def _cat(u: Array, v: Array, noise: Array) -> Painted:
    head = _disc(u, v, 0.5, 0.45, 0.27)
    ears = ((np.abs(np.abs(u - 0.5) - 0.18) < (0.85 - v) * 0.3) & (v > 0.6) & (v < 0.85)) * 1.0
    eyes = np.maximum(_disc(u, v, 0.4, 0.5, 0.045), _disc(u, v, 0.6, 0.5, 0.045))
    whiskers = ((np.abs((v - 0.36) - 0.25 * np.abs(u - 0.5)) < 0.008) & (np.abs(u - 0.5) > 0.1)) * head
    return np.maximum(head, ears), np.maximum(eyes, whiskers), 1.0


def _flag(u: Array, v: Array, noise: Array) -> Painted:
    return (v * 6 % 2 < 1) * 1.0, ((u < 0.4) & (v > 0.5)) * 1.0, 1.0


def _clock(u: Array, v: Array, noise: Array) -> Painted:
    radius, angle = np.hypot(u - 0.5, v - 0.5), np.arctan2(v - 0.5, u - 0.5)
    ticks = (np.abs((angle / (2 * np.pi) * 12 + 0.5) % 1 - 0.5) < 0.12) & (radius > 0.33) & (radius < 0.41)
    hands = (_box(u, v, 0.5, 0.62, 0.04, 0.28) + _box(u, v, 0.58, 0.5, 0.2, 0.05)) > 0
    rim = np.abs(radius - 0.46) < 0.04
    return (ticks | hands | rim) * 1.0, 0.0, 1.0


def _screen(u: Array, v: Array, noise: Array) -> Painted:
    """A screen that shows a road to the horizon."""
    road = (np.abs(u - 0.5) < 0.5 * (0.6 - v)) & (v < 0.58)
    frame = np.minimum(np.minimum(u, 1 - u), np.minimum(v, 1 - v)) < 0.05
    line = (np.abs(u - 0.5) < 0.05 * (0.6 - v)) & (v < 0.58)
    return ((v > 0.58) | line) * 1.0, road * (1 - line), np.where(frame, 0.08, 0.75 + 0.25 * np.sin(v * 180) ** 2)


def _view(u: Array, v: Array, noise: Array) -> Painted:
    """Sky with clouds above hills, behind the bars of a window."""
    hills = v < 0.36 + 0.08 * np.sin(6 * u) + 0.03 * np.sin(19 * u)
    clouds = (noise > 0.58) & ~hills
    bars = (np.abs(u - 0.5) < 0.022) | (np.abs(v - 0.5) < 0.022)
    return clouds * 0.9 * ~bars + bars * 1.0, hills * (1 - bars), 0.85 + 0.15 * v


_PAINTERS = {name: globals()[f"_{name}"] for name in PICTURES}
