# SPDX-License-Identifier: Apache-2.0
"""Surfaces: textured parallelograms and balls, the only shapes of the rooms world."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from aapt_fast.worlds.rooms.textures import library

Colours = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Three RGB colours [3] in 0..1, which the masks of a texture mix."""

Vector = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Material:
    """A texture, its colours, and the metres that one tile covers along each side; 0 metres: the whole surface."""

    texture: str
    colours: Colours
    metres: float = 0.0
    glow: float = 0.0  # light of its own; 0 for all but lamps, screens and windows


@dataclass(frozen=True)
class Quad:
    """A parallelogram; whoever looks at its front sees `u` to the right and `v` upwards."""

    corner: np.ndarray  # [3] metres
    u: np.ndarray  # [3], the whole side
    v: np.ndarray
    material: Material


@dataclass(frozen=True)
class Ball:
    """A sphere."""

    centre: np.ndarray  # [3] metres
    radius: float
    material: Material


@dataclass(frozen=True)
class Quads:
    """Many quads as arrays, one row each, as the renderer takes them."""

    corner: np.ndarray  # float32 [Q, 3]
    u: np.ndarray
    v: np.ndarray
    texture: np.ndarray  # int32 [Q], the number of its texture
    tiles: np.ndarray  # float32 [Q, 2], tiles along u and v
    colours: np.ndarray  # float32 [Q, 9]: c0, c1 - c0, c2 - c0
    glow: np.ndarray  # float32 [Q]

    def __len__(self) -> int:
        return len(self.texture)


def stack_quads(quads: Sequence[Quad]) -> Quads:
    """The arrays of quads; there may be none."""
    names = library().names
    lengths = [(float(np.linalg.norm(q.u)), float(np.linalg.norm(q.v))) for q in quads]
    tiles = [
        (a / q.material.metres, b / q.material.metres) if q.material.metres else (1.0, 1.0)
        for q, (a, b) in zip(quads, lengths, strict=True)
    ]
    return Quads(
        corner=_rows([q.corner for q in quads], 3),
        u=_rows([q.u for q in quads], 3),
        v=_rows([q.v for q in quads], 3),
        texture=np.array([names[q.material.texture] for q in quads], np.int32),
        tiles=_rows(tiles, 2),
        colours=_rows([mixed_colours(q.material) for q in quads], 9),
        glow=np.array([q.material.glow for q in quads], np.float32),
    )


def mixed_colours(material: Material) -> np.ndarray:
    """c0, c1 - c0, c2 - c0 of a material, [9]."""
    first, second, third = material.colours
    return np.concatenate([first, second - first, third - first])


def _rows(values: Sequence[Vector], width: int) -> np.ndarray:
    return np.array(values, np.float32).reshape(-1, width)


@dataclass
class Piece:
    """Some quads and balls that belong together, such as a chair, and the boxes that they lie in."""

    quads: list[Quad] = field(default_factory=list)
    balls: list[Ball] = field(default_factory=list)
    boxes: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)  # low and high corners, for its shadow

    def box(
        self, low: Vector, high: Vector, material: Material, front: Material | None = None, faces: str = "xXyzZ"
    ) -> None:
        """Add a box with these `faces`: x, z the low sides, X, Z the high ones, y the top, Y the bottom.

        `front` is the material of the face z, if it has one of its own.
        """
        a, b = np.array(low, float), np.array(high, float)
        dx, dy, dz = np.diag(b - a)
        sides = {
            "x": (a + dz, -dz, dy), "X": (a + dx, dz, dy),
            "y": (a + dy, dx, dz), "Y": (a, dz, dx),
            "z": (a, dx, dy), "Z": (a + dx + dz, -dx, dy),
        }  # fmt: skip
        for name in faces:
            corner, u, v = sides[name]
            self.quads.append(Quad(corner, u, v, front if front is not None and name == "z" else material))
        self.boxes.append((a, b))

    def ball(self, centre: Vector, radius: float, material: Material) -> None:
        """Add a ball."""
        middle = np.array(centre, float)
        self.balls.append(Ball(middle, radius, material))
        self.boxes.append((middle - radius * 0.8, middle + radius * 0.8))

    def placed(self, origin: Vector, turn: int) -> Piece:
        """The piece turned by `turn` quarters around its origin, then moved to `origin` [3]."""
        cos, sin = ((1, 0), (0, 1), (-1, 0), (0, -1))[turn % 4]
        rotation = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]], float)
        place = np.array(origin, float)
        boxes = [(rotation @ a + place, rotation @ b + place) for a, b in self.boxes]
        return Piece(
            [Quad(rotation @ q.corner + place, rotation @ q.u, rotation @ q.v, q.material) for q in self.quads],
            [Ball(rotation @ ball.centre + place, ball.radius, ball.material) for ball in self.balls],
            [(np.minimum(a, b), np.maximum(a, b)) for a, b in boxes],
        )

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Low and high corner of all its boxes."""
        return np.min([a for a, _ in self.boxes], axis=0), np.max([b for _, b in self.boxes], axis=0)
