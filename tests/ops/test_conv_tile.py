# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest

from aapt_fast.ops.conv_tile import TILES, conv_tile

CLUSTERS = 66  # of two blocks, on 132 multiprocessors


@pytest.mark.parametrize(
    ("height", "width", "images", "channels", "expected"),
    [
        (416, 736, 4, 64, (512, 64)),
        (416, 736, 4, 96, (256, 96)),
        (208, 368, 4, 128, (128, 128)),
        (208, 368, 4, 192, (128, 192)),
        (104, 184, 2, 256, (128, 128)),
        (208, 368, 4, 256, (256, 128)),
        (52, 92, 1, 512, (128, 192)),  # 126 tiles in one wave
        (52, 92, 1, 384, (128, 128)),  # likewise
    ],
)
def test_tiles_of_the_layers_of_a_decoder(height, width, images, channels, expected):
    assert conv_tile(height, width, images, channels, 27 * channels, CLUSTERS) == expected


@pytest.mark.parametrize("outputs", [1, 64, 96, 200, 512])
@pytest.mark.parametrize("size", [(1, 1), (13, 17), (104, 184)])
def test_the_tile_takes_the_shortest_time_counted_tile_by_tile(size, outputs):
    depth = 9 * 64

    def time(tile: tuple[int, int]) -> float:
        rows, columns = tile[0] // 16, 16
        in_frame = len(range(0, size[0], rows)) * len(range(0, size[1], columns))
        pairs = math.ceil(in_frame / 2) * 3 * len(range(0, outputs, tile[1]))
        rate, microseconds = TILES[tile]
        products = 2 * math.prod(tile) * depth / (rate * 1e12 / 132)
        return math.ceil(pairs / CLUSTERS) * (products + microseconds * 1e-6)

    assert time(conv_tile(*size, 3, outputs, depth, CLUSTERS)) == pytest.approx(min(map(time, TILES)))


@pytest.mark.parametrize("outputs", [136, 160, 192])
def test_a_tile_of_whole_pixels_has_all_outputs(outputs):
    """Here two tiles per pixel would take less time."""
    arguments = (52, 92, 1, outputs, 27 * outputs, CLUSTERS)
    assert (conv_tile(*arguments), conv_tile(*arguments, whole=True)) == ((128, 128), (128, 192))


def test_no_tile_has_all_of_many_outputs():
    """Then the kernel refuses them; the choice is the one without the wish."""
    arguments = (104, 184, 2, 384, 27 * 384, CLUSTERS)
    assert conv_tile(*arguments, whole=True) == conv_tile(*arguments)
