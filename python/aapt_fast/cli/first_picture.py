# SPDX-License-Identifier: Apache-2.0
"""The option `--image`: a number of the model's gallery, or a picture of any size from a file, fitted to the model."""

from __future__ import annotations

import numpy as np

from aapt_fast.cli.checks import is_number
from aapt_fast.errors import require
from aapt_fast.media import first_picture
from aapt_fast.media.first_picture import crop_size
from aapt_fast.media.pictures import read_picture
from aapt_fast.models.files.gallery import read_gallery
from aapt_fast.models.files.model_file import load_gallery
from aapt_fast.progress import say
from aapt_fast.worlds import WORLDS
from aapt_fast.worlds.world import FirstFrame, World

FEW_PIXELS = 0.5
"""Share of the model's size, in either direction, below which a picture is said to be enlarged."""


def read_first_picture(image: str, model: str) -> FirstFrame:
    """Number `image` of the model's gallery, or a picture file of any size, as `check_image` has found it."""
    return load_gallery(model)[int(image)] if is_number(image) else FirstFrame(_read(image))


def world_of(model: str) -> World:
    """The world that the model's gallery is from; the person world for a model without one."""
    gallery = read_gallery(model)
    name = "person" if gallery is None else gallery.world
    require(name in WORLDS, "--model", f"a gallery of the world {' | '.join(WORLDS)}", name)
    return WORLDS[name]


def fit_and_say(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle of `picture` uint8 [H, W, 3] with the aspect ratio of `size` (height, width), resized to it.

    Reports on stderr how it was changed; a picture of that size comes back as it is.
    """
    (tall, wide), (height, width) = picture.shape[:2], size
    if (tall, wide) == size:
        return picture
    crop_tall, crop_wide = crop_size((tall, wide), size)
    done = []
    if (crop_tall, crop_wide) != (tall, wide):
        done.append(f"cropped to the middle {crop_wide} x {crop_tall}")
    if min(crop_tall / height, crop_wide / width) < FEW_PIXELS:
        done.append(f"enlarged to {width} x {height}, which stays blurred: so few pixels hold no details")
    elif (crop_tall, crop_wide) != size:
        done.append(f"resized to {width} x {height}")
    say(f"--image: {wide} x {tall} {' and '.join(done)}")
    return first_picture.fit_picture(picture, width, height)


def _read(path: str) -> np.ndarray:
    """The picture of a file as a viewer shows it, uint8 [H, W, 3]; reports on stderr what differs from the file."""
    picture = read_picture(path, "--image")
    for note in picture.notes:
        say(f"--image: {note}")
    return picture.pixels
