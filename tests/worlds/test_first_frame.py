# SPDX-License-Identifier: Apache-2.0
"""A first frame is refused when it is made, if no session could take its picture or its control."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from aapt_fast import FirstFrame, StreamSession
from aapt_fast.testing.streams import STREAMS, random_model

PICTURE = np.zeros((48, 96, 3), np.uint8)
MODEL = random_model(STREAMS["pose"])


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (7, TypeError, r"image: expected a PIL image, uint8 \[H, W, 3\] or float \[3, H, W\], got int"),
        (np.zeros((3, 48, 96), np.uint8), ValueError, r"image: expected shape \[H, W, 3\], got \[3, 48, 96\]"),
        (torch.zeros(48, 96, 3), ValueError, r"image: expected shape \[3, H, W\], got \[48, 96, 3\]"),
        (np.zeros((48, 96, 3), np.int64), ValueError, "image: expected uint8 .*, got torch.int64"),
        (torch.full((3, 8, 8), torch.nan), ValueError, r"image: expected values in -1..1 .*, got nan to nan"),
    ],
)
def test_pictures_that_no_session_takes(image, error, message):
    with pytest.raises(error, match=message):
        FirstFrame(image)


@pytest.mark.parametrize(
    ("control", "error", "message"),
    [
        ("pose", TypeError, "control: expected a tensor, an array or lists of numbers, got str"),
        (torch.zeros(4, 19), ValueError, r"control: expected shape \[J, 3\] .* or \[C, h, w\] .*, got \[4, 19\]"),
        (torch.full((19, 3), torch.inf), ValueError, "control: expected finite values, got nan or inf"),
        (torch.full((19, 3), 1e5), ValueError, "control: expected values within -10000..10000, .*, got one of size"),
    ],
)
def test_controls_that_no_session_takes(control, error, message):
    with pytest.raises(error, match=message):
        FirstFrame(PICTURE, control)
    assert FirstFrame(PICTURE, torch.zeros(19, 3)).control is not None
    assert FirstFrame(PICTURE, np.ones((5, 12, 12))).control is not None


def test_no_picture_is_refused_with_the_sentence_of_a_session():
    message = "image: expected an image: it is the recycled frame of the first step, got None"
    for make in (lambda: FirstFrame(None), lambda: StreamSession(MODEL)):
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize("image", [PICTURE, torch.zeros(3, 48, 96), Image.new("L", (96, 48))])
def test_the_representation_tells_width_and_height(image):
    assert repr(FirstFrame(image)) == "FirstFrame(96 x 48, a picture from elsewhere)"


def test_a_session_says_how_a_picture_of_another_size_is_fitted():
    fitting = r"; aapt_fast.fit_picture\(image, 32, 32\) crops and scales it"
    with pytest.raises(ValueError, match=r"image: expected shape \[32, 32, 3\], got \[48, 96, 3\]" + fitting):
        StreamSession(MODEL, FirstFrame(PICTURE))
