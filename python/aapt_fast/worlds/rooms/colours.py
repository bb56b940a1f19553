# SPDX-License-Identifier: Apache-2.0
"""Colours of rooms and things, drawn at random."""

from __future__ import annotations

import colorsys

import numpy as np

from aapt_fast.worlds.rooms.surfaces import Colours, Material


def tint(hue: float, saturation: float, value: float) -> np.ndarray:
    """RGB [3] in 0..1 of a colour; the hue too is in 0..1."""
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value))


class Palette:
    """Draws materials; those of one room keep to its hue."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.hue = float(rng.random())

    def between(self, low: float, high: float) -> float:
        """A number between two others."""
        return float(self.rng.uniform(low, high))

    def pick(self, names: tuple[str, ...]) -> str:
        """One of some names."""
        return str(names[int(self.rng.integers(len(names)))])

    def wood(self) -> Colours:
        """Light and dark of a wood, and a metal for handles."""
        hue, value = self.between(0.04, 0.1), self.between(0.3, 0.85)
        light = tint(hue, self.between(0.35, 0.65), value)
        return light, 0.62 * light, tint(0.12, self.between(0, 0.6), 0.85)

    def bright(self) -> Colours:
        """Three colours that stand out from each other."""
        hue = float(self.rng.random())
        return (
            tint(hue, self.between(0.5, 0.9), self.between(0.7, 1)),
            tint(hue + self.between(0.25, 0.75), self.between(0.4, 0.9), self.between(0.25, 0.6)),
            tint(hue + self.between(0.2, 0.8), self.between(0.1, 0.5), self.between(0.85, 1)),
        )

    def soft(self, low: float = 0.6, high: float = 0.92) -> Colours:
        """Three shades near the room's hue, for walls."""
        hue, saturation = self.hue + self.between(-0.06, 0.06), self.between(0.12, 0.45)
        value = self.between(low, high)
        return (
            tint(hue, saturation, value),
            tint(hue + self.between(-0.05, 0.05), min(1, saturation * 1.5), value * self.between(0.62, 0.85)),
            tint(hue + self.between(-0.1, 0.1), saturation * 0.4, min(1, value * 1.15)),
        )

    def wooden(self, texture: str = "wood", metres: float = 0.9) -> Material:
        """A wooden material."""
        return Material(texture, self.wood(), metres)

    def cloth(self) -> Material:
        """A woven material."""
        return Material("fabric", self.bright(), self.between(0.4, 0.8))
