# SPDX-License-Identifier: Apache-2.0
"""Choice of the tile of a convolution on Hopper, so that the last wave of blocks is full."""

from __future__ import annotations

import functools

TILES = {
    (256, 128): (759, 0.2),
    (128, 192): (759, 0.3),
    (128, 128): (730, 0.2),
    (256, 96): (691, 0.5),
    (512, 64): (651, 1.3),
}
"""Tiles of (pixels, outputs): the rate in TFLOP/s at which 132 blocks multiply them by arithmetic, and the microseconds
of a tile on its way to memory that no product hides; to be measured. csrc/ring_conv3d/README.md derives them."""

TILE_WIDTH = 16
"""Pixels in a row of every tile."""


@functools.lru_cache(256)
def conv_tile(
    height: int, width: int, images: int, outputs: int, depth: int, clusters: int, whole: bool = False
) -> tuple[int, int]:
    """Choose the tile with which all outputs take the shortest time.

    Args:
        height: of a frame, in pixels.
        width: likewise.
        images: frames of all rows of the batch, times phases.
        outputs: of a phase.
        depth: products in a sum: taps times channels.
        clusters: pairs of blocks that run at the same time; the blocks of a pair have different pixels.
        whole: only a tile that has all outputs of a pixel, if there is one.

    Returns:
        (pixels, outputs), a key of TILES.
    """
    fitting = [tile for tile in TILES if tile[1] >= outputs] if whole else []
    return min(fitting or TILES, key=lambda tile: _microseconds(tile, height, width, images, outputs, depth, clusters))


def _microseconds(
    tile: tuple[int, int], height: int, width: int, images: int, outputs: int, depth: int, clusters: int
) -> float:
    in_frame = _ceil_divide(height, tile[0] // TILE_WIDTH) * _ceil_divide(width, TILE_WIDTH)
    pairs = _ceil_divide(in_frame, 2) * images * _ceil_divide(outputs, tile[1])
    rate, way_to_memory = TILES[tile]
    products = 2 * tile[0] * tile[1] * depth / (rate / 132 * 1e6)
    return _ceil_divide(pairs, clusters) * (products + way_to_memory)


def _ceil_divide(a: int, b: int) -> int:
    return -(-a // b)
