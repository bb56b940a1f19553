# SPDX-License-Identifier: Apache-2.0
"""Pictures that a model cannot draw are told from those of its world."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from aapt_fast import FirstFrame, StreamModel, load_gallery
from aapt_fast.models.likeness import gallery_errors, number_in_gallery, unlike_gallery
from aapt_fast.worlds.person.world import PersonWorld


@pytest.fixture(scope="module")
def model() -> StreamModel:
    return StreamModel.from_pretrained("mini-person")


@pytest.fixture(scope="module")
def gallery() -> list[FirstFrame]:
    return load_gallery("mini-person")[::5]


@pytest.fixture(scope="module")
def errors(model, gallery) -> list[float]:
    return gallery_errors(model, gallery)


def smooth_noise() -> np.ndarray:
    """As coarse as a photo of this size."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    return np.asarray(Image.fromarray(noise).resize((96, 96), Image.Resampling.BICUBIC))


UNLIKE = {
    "noise": np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8),
    "smooth noise": smooth_noise(),
    "fractal": np.asarray(Image.effect_mandelbrot((96, 96), (-2, -1.5, 1, 1.5), 30).convert("RGB")),
}


def square() -> np.ndarray:
    """A red square on white, resized as pictures of files are."""
    picture = Image.new("RGB", (400, 400), "white")
    picture.paste((255, 0, 0), (100, 100, 300, 300))
    return np.asarray(picture.resize((96, 96), Image.Resampling.LANCZOS))


PLAIN = {
    "grey": np.full((96, 96, 3), 120, np.uint8),
    "red": np.broadcast_to(np.array([255, 0, 0], np.uint8), (96, 96, 3)),
    "a square on white": square(),
}


@pytest.mark.parametrize("name", PLAIN)
def test_pictures_without_detail_are_called_so(name, model, errors):
    said = unlike_gallery(PLAIN[name], model, errors)
    assert said is not None and said.startswith("the picture has hardly any detail, so no person is to be seen in it")


@pytest.mark.parametrize("name", UNLIKE)
def test_pictures_from_elsewhere_are_unlike(name, model, errors):
    said = unlike_gallery(UNLIKE[name], model, errors)
    assert said is not None and said.startswith("the picture is unlike those that mini-person was trained on (error of")


@pytest.mark.parametrize("clip", range(3))
def test_strangers_of_the_same_world_are_like(clip, model, errors):
    assert unlike_gallery(PersonWorld().first_frame(777, clip, 96).image, model, errors) is None


def test_copies_of_the_gallery_are_found(gallery):
    for number, first in enumerate(gallery):
        file = io.BytesIO()
        Image.fromarray(first.image).save(file, "JPEG", quality=75)
        assert number_in_gallery(np.asarray(Image.open(file)), gallery) == number
        assert number_in_gallery(first.image, gallery[:number]) is None
    assert number_in_gallery(UNLIKE["noise"], gallery) is None


def test_nothing_is_said_without_a_gallery(model):
    assert unlike_gallery(UNLIKE["noise"], model, []) is None
