# SPDX-License-Identifier: Apache-2.0
"""Pictures of any kind and size become what a model takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import aapt_fast
from aapt_fast.media.first_picture import as_picture, picture_size

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)


def as_float(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1


@pytest.mark.parametrize("given", [PIXELS, torch.from_numpy(PIXELS), Image.fromarray(PIXELS), as_float(PIXELS)])
def test_every_kind_is_cropped_to_the_middle_and_scaled(given):
    assert picture_size(as_picture(given)) == (60, 80)
    assert np.array_equal(aapt_fast.fit_picture(given, 60, 60), PIXELS[:, 10:70])
    small = aapt_fast.fit_picture(given, 16, 8)
    assert small.shape == (8, 16, 3) and small.dtype == np.uint8
    assert aapt_fast.FirstFrame(small).image is small


def test_a_float_picture_that_is_probably_in_0_to_1_is_warned_of_before_it_is_grey():
    with pytest.warns(UserWarning, match=r"picture: expected values in -1..1, got 0 to 1; ") as caught:
        aapt_fast.fit_picture(torch.linspace(0, 1, 3 * 8 * 8).view(3, 8, 8), 4, 4)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((PIXELS, 96.0, 96), TypeError, "width: expected an integer, got float"),
        ((PIXELS, 96, 0), ValueError, "height: expected at least 1 pixel, got 0"),
        ((PIXELS, 10**9, 10**9), ValueError, "width x height: expected a value that fits into the"),
        (("me.jpg", 96, 96), TypeError, r"picture: expected a PIL image, uint8 \[H, W, 3\] or .*, got str"),
        ((PIXELS.transpose(2, 0, 1), 9, 9), ValueError, r"picture: expected shape \[H, W, 3\], got \[3, 60, 80\]"),
        ((PIXELS[:0], 9, 9), ValueError, r"picture: expected at least one pixel, got shape \[0, 80, 3\]"),
    ],
)
def test_mistakes_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        aapt_fast.fit_picture(*arguments)
