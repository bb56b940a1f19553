# SPDX-License-Identifier: Apache-2.0
"""Pictures of any size, as a user has them, become what a model takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aapt_fast.cli.first_picture import fit_and_say, read_first_picture
from aapt_fast.worlds.person.skeleton import ANGLE, JOINT

ENLARGED = "enlarged to 96 x 96, which stays blurred: so few pixels hold no details"


def picture(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("given", "size", "said"),
    [
        ((640, 480), (96, 96), "640 x 480 cropped to the middle 480 x 480 and resized to 96 x 96"),
        ((480, 640), (96, 96), "480 x 640 cropped to the middle 480 x 480 and resized to 96 x 96"),
        ((640, 480), (64, 128), "640 x 480 cropped to the middle 640 x 320 and resized to 128 x 64"),
        ((50, 50), (96, 96), "50 x 50 resized to 96 x 96"),
        ((200, 96), (96, 96), "200 x 96 cropped to the middle 96 x 96"),
        ((5, 3), (96, 96), f"5 x 3 cropped to the middle 3 x 3 and {ENLARGED}"),
        ((1, 500), (96, 96), f"1 x 500 cropped to the middle 1 x 1 and {ENLARGED}"),
        ((47, 47), (96, 96), f"47 x 47 {ENLARGED}"),
    ],
)
def test_another_size_is_cropped_to_the_middle_and_resized(given, size, said, capsys):
    assert fit_and_say(picture(*given), size).shape == (*size, 3)
    assert capsys.readouterr().err == f"--image: {said}\n"


def test_the_crop_is_the_middle():
    given = picture(200, 96)
    assert np.array_equal(fit_and_say(given, (96, 96)), given[:, 52:148])


def test_a_picture_of_the_right_size_stays_as_it_is(capsys):
    given = picture(96, 64)
    assert fit_and_say(given, (64, 96)) is given and capsys.readouterr().err == ""


def test_the_orientation_in_the_file_is_respected(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn clockwise to see
    given = picture(40, 30)
    Image.fromarray(given).save(tmp_path / "x.png", exif=exif)
    start = read_first_picture(str(tmp_path / "x.png"), "mini-person")
    assert np.array_equal(start.image, np.rot90(given, -1)) and start.pose is None


@pytest.mark.parametrize("model", ["mini-person", "mini-anyone"])
def test_the_first_person_of_a_gallery_stands_upright(model: str):
    """Number 0 is what a newcomer sees first: from a squat or a jump the first half second is the worst of all."""
    first = read_first_picture("0", model)
    place = {name: first.control[number] for name, number in JOINT.items()}
    assert place["head"][1] < place["pelvis"][1] - 0.2 and place["pelvis"][1] < place["left_foot"][1] - 0.3
    assert abs(place["left_foot"][1] - place["right_foot"][1]) < 0.05  # both on the ground
    assert all(place[f"{side}_hand"][1] > place["head"][1] for side in ("left", "right"))
    assert first.pose[ANGLE["lift"]] == 0 and abs(place["pelvis"][0] - 0.5) < 0.15
