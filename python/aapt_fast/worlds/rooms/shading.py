# SPDX-License-Identifier: Apache-2.0
"""Colours of points on quads and balls: filtered textures under the light of their rooms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aapt_fast.worlds.rooms.light import direct_light
from aapt_fast.worlds.rooms.raster import ball_depth
from aapt_fast.worlds.rooms.surfaces import Quads
from aapt_fast.worlds.rooms.textures import LEVELS, TEXELS, library

SHARPNESS = 1.3  # factor on the texels in a pixel, of which at most 2 are left unfiltered


@dataclass(frozen=True)
class QuadTable:
    """Values that shading looks up per quad: arrays with one entry, or row of entries, per quad."""

    quads: Quads
    light_start: np.ndarray  # int32 [Q]
    light_counts: np.ndarray  # int32 [Q, 2]
    lamp: np.ndarray  # float32 [Q, 3], RGB of the light


@dataclass(frozen=True)
class BallTable:
    """Balls of several rooms."""

    centre: np.ndarray  # float32 [B, 3]
    radius: np.ndarray  # float32 [B]
    texture: np.ndarray  # int32 [B]
    colours: np.ndarray  # float32 [B, 9], as those of quads
    glow: np.ndarray  # float32 [B]
    lamp: np.ndarray  # float32 [B, 3], RGB of the light
    lamp_place: np.ndarray  # float32 [B, 3]

    def __len__(self) -> int:
        return len(self.texture)


def shade_quads(
    table: QuadTable, light: np.ndarray, inverse: np.ndarray, heights: np.ndarray, which: np.ndarray,
    x: np.ndarray, y: np.ndarray, pixel: float,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """RGB float32 [3, N] and depth [N] of quads `which` [N] along the rays (x, y, 1).

    `inverse` [Q, 3, 3] as in `raster.Planes`, `heights` [Q] the cameras' distances from the planes, `pixel` the width
    of a pixel at distance 1, `light` [..] the values of all light maps.
    """
    rows: list[np.ndarray] = [inverse[:, row, column].take(which) for row in range(3) for column in range(3)]
    z = 1 / (rows[6] * x + rows[7] * y + rows[8])
    s = np.clip((rows[0] * x + rows[1] * y + rows[2]) * z, 0, 1)
    r = np.clip((rows[3] * x + rows[4] * y + rows[5]) * z, 0, 1)
    quads = table.quads
    lengths = np.sqrt((quads.u**2).sum(1) * (quads.v**2).sum(1))
    density = TEXELS * np.sqrt(quads.tiles.prod(1) / lengths)  # texels per metre
    ray = np.sqrt(x * x + y * y + 1)
    squeezed = np.maximum(heights.take(which) / (z * ray), 0.03)  # cosine of the angle with the normal
    footprint = density.take(which) * z * np.float32(SHARPNESS * pixel) / np.sqrt(squeezed)
    tiles = quads.tiles
    masks = sample_texture(
        quads.texture.take(which), s * tiles[:, 0].take(which), r * tiles[:, 1].take(which), footprint
    )
    bright = sample_light(
        light,
        table.light_start.take(which),
        (table.light_counts[:, 0].take(which), table.light_counts[:, 1].take(which)),
        s,
        r,
    )
    glow: np.ndarray = quads.glow.take(which)
    return _mix(quads.colours, table.lamp, which, masks, bright, glow), z


def shade_balls(
    table: BallTable, seen: np.ndarray, rotation: np.ndarray, which: np.ndarray, x: np.ndarray, y: np.ndarray,
    pixel: float,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """RGB float32 [3, N] and depth [N] of balls `which` [N] along rays; `seen` [B, 3] are their centres for the camera.

    `rotation` [3, 3] has the camera's axes as columns.
    """
    centre, radius = seen[which], table.radius[which]
    z, _ = ball_depth(x, y, centre, radius)
    outwards = np.stack([x * z, y * z, z], axis=1) - centre
    outwards /= np.linalg.norm(outwards, axis=1, keepdims=True)
    normal = outwards @ rotation.T.astype(np.float32)
    u = np.arctan2(normal[:, 0], normal[:, 2]) / (2 * np.pi) + 0.5
    v = np.arccos(np.clip(-normal[:, 1], -1, 1)) / np.pi
    footprint = TEXELS * SHARPNESS * z * pixel / (radius * np.pi) / np.maximum(-outwards[:, 2], 0.2)
    masks = sample_texture(table.texture[which], u * 2, v, footprint)
    place = table.centre[which] + normal * radius[:, None]
    bright: np.ndarray = direct_light(place, normal, table.lamp_place[which]).astype(np.float32)
    bright *= 0.82 + 0.18 * normal[:, 1]
    return _mix(table.colours, table.lamp, which, masks, bright, table.glow[which]), z


def _mix(
    colours: np.ndarray, lamp: np.ndarray, which: np.ndarray, masks: np.ndarray, bright: np.ndarray, glow: np.ndarray
) -> np.ndarray:
    """RGB [3, N] of masks [3, N] under a brightness [N]; what glows has its own light instead."""
    first, second, shade = masks
    out: np.ndarray = np.empty((3, len(which)), np.float32)
    for channel in range(3):
        colour: np.ndarray = colours[:, channel].take(which)
        colour += first * colours[:, channel + 3].take(which)
        colour += second * colours[:, channel + 6].take(which)
        lit: np.ndarray = bright * lamp[:, channel].take(which)
        np.multiply(colour, shade * (lit + glow * (1.05 - lit)), out=out[channel])
    return out


def sample_texture(texture: np.ndarray, u: np.ndarray, v: np.ndarray, footprint: np.ndarray) -> np.ndarray:
    """Masks float32 [3, N] in 0..1 at places u, v [N], in tiles, for pixels that cover `footprint` [N] texels."""
    tiles = library()
    exponent = (footprint.view(np.int32) >> 23) - 127  # of a float32: the whole part of its logarithm
    level = np.minimum(np.maximum(exponent, 0), LEVELS - 1)
    offset: np.ndarray = tiles.offsets.take(texture * LEVELS + level)
    size = np.right_shift(np.int32(TEXELS), level)
    last, wide = size - 1, size.astype(np.float32)
    x, y = u * wide - np.float32(0.5), v * wide - np.float32(0.5)
    left, low = np.floor(x), np.floor(y)
    fx, fy = (x - left)[:, None], (y - low)[:, None]
    column, row = left.astype(np.int32) & last, low.astype(np.int32)
    both: np.ndarray = np.empty((2, len(u)), np.intp)
    np.add(offset + (row & last) * size, column, out=both[0])
    np.add(offset + ((row + 1) & last) * size, column, out=both[1])
    pairs: np.ndarray = tiles.pairs.take(both).view(np.uint8).reshape(2, -1, 8)
    mean: np.ndarray = pairs[0].astype(np.float32)
    mean += (pairs[1] - mean) * fy
    masks = mean[:, :4]
    masks += (mean[:, 4:] - masks) * fx
    return np.ascontiguousarray(masks[:, :3].T) * np.float32(1 / 255)


def sample_light(
    light: np.ndarray, start: np.ndarray, counts: tuple[np.ndarray, np.ndarray], s: np.ndarray, r: np.ndarray
) -> np.ndarray:
    """Brightness [N] between the nodes of light maps that begin at `start` [N] and have `counts` [2, N] nodes."""
    columns, rows = counts[0], counts[1]
    x, y = s * (columns - 1).astype(np.float32), r * (rows - 1).astype(np.float32)
    left, low = np.minimum(x.astype(np.int32), columns - 2), np.minimum(y.astype(np.int32), rows - 2)
    fx, fy = x - left.astype(np.float32), y - low.astype(np.float32)
    node = (start + low * columns + left).astype(np.intp)
    under: np.ndarray = light.take(node)
    under = under + (light.take(node + 1) - under) * fx
    over: np.ndarray = light.take(node + columns)
    over = over + (light.take(node + columns + 1) - over) * fx
    return under + (over - under) * fy
