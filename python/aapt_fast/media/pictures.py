# SPDX-License-Identifier: Apache-2.0
"""Pictures of any kind -> uint8 RGB as a viewer shows them: upright, in sRGB, over white."""

from __future__ import annotations

import io
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from aapt_fast.errors import require

DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I")  # Pillow's modes of grey in 16 bits; "I" has room for 32
GREY = ("1", "L", "LA", "La")
WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
PROFILE_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # colour space of an ICC profile -> mode that it describes
UNREADABLE = (OSError, ValueError, SyntaxError)  # Pillow's errors for damaged files


@dataclass(frozen=True)
class Picture:
    """A picture as a viewer shows it."""

    pixels: np.ndarray
    """uint8 [H, W, 3], sRGB."""
    notes: tuple[str, ...] = ()
    """Sentences about what is not shown, or shown in another way than it is stored."""


def read_picture(path: str | Path, argument: str, expected: str = "a picture file") -> Picture:
    """Read a file. Raises ValueError, naming `argument`, for one that is missing, no picture, damaged or ambiguous."""
    require(str(path) != "", argument, expected, "an empty text")
    require(os.path.exists(path), argument, expected, f"{path}, which does not exist")
    require(not Path(path).is_dir(), argument, expected, f"the folder {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large; too large is an error
            with Image.open(path) as file:
                file.load()
                return show(file, argument)
    except UnidentifiedImageError as error:
        raise ValueError(f"{argument}: expected {expected}, got {path}, which is no picture") from error
    except Image.DecompressionBombError as error:
        found = re.search(r"\d+", str(error))  # its pixels; no other attribute has them
        got = f"{path} with {int(found[0]) / 1e6:.0f}" if found else path
        expected = f"a picture of at most {2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6:.0f} megapixels"
        raise ValueError(f"{argument}: expected {expected}, got {got}") from error
    except AmbiguousPicture:
        raise
    except UNREADABLE as error:
        raise ValueError(f"{argument}: expected an undamaged, readable picture, got {path}: {error}") from error


class AmbiguousPicture(ValueError):
    """A picture whose numbers do not say how bright they are."""


def show(image: Image.Image, argument: str = "image") -> Picture:
    """Pixels of a PIL image of any mode.

    The first of several frames or pages counts. The EXIF orientation is applied. Grey in 16 bits is scaled: 65535 is
    white; float is 0..1. An ICC profile is converted to sRGB. Transparent parts show white, whatever colour they hide.
    Raises ValueError, naming `argument`, for an image of a damaged file, and for float values and 32-bit integers that
    do not say what white is.
    """
    notes = []
    try:
        count = getattr(image, "n_frames", 1)
        if count > 1 and image.tell() != 0:
            image.seek(0)
        image.load()
    except UNREADABLE as error:
        got = f"one that cannot be read: {error}"
        raise ValueError(f"{argument}: expected an undamaged, readable picture, got {got}") from error
    if count > 1 and image.format != "MPO":  # a photo, whose other pictures are previews and depths
        notes.append(f"the first of its {count} pictures is used")
    image = ImageOps.exif_transpose(image)
    if image.mode in DEEP:
        return Picture(_deep_grey(image, argument), tuple(notes))
    if image.mode == "F":
        return Picture(_float_grey(image, argument), tuple(notes))
    colours, alpha = _split_alpha(image)
    colours = _to_srgb(colours, image.info.get("icc_profile"), notes)
    if alpha is not None and alpha.getextrema()[0] < 255:
        notes.append("transparent parts are shown over white")
        colours = Image.composite(colours, Image.new("RGB", colours.size, "white"), alpha)
    return Picture(np.array(colours), tuple(notes))


def _deep_grey(image: Image.Image, argument: str) -> np.ndarray:
    """Grey in 16 bits -> uint8 [H, W, 3]."""
    values = np.asarray(image).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535 or (image.mode == "I" and 0 < high < 256):
        got = f"{low} to {high} in integers of {32 if image.mode == 'I' else 16} bits"
        raise AmbiguousPicture(f"{argument}: expected grey values up to 65535, which is white, got {got}")
    grey = (values * 255 + 32767) // 65535
    if isinstance(transparent := image.info.get("transparency"), int):
        grey[values == transparent] = 255
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1)


def _float_grey(image: Image.Image, argument: str) -> np.ndarray:
    """Grey in 0..1 -> uint8 [H, W, 3]."""
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # nan is not, either
        got = f"{low:g} to {high:g}"
        raise AmbiguousPicture(f"{argument}: expected float values from 0, black, to 1, white, got {got}")
    return np.repeat(np.rint(values * 255).astype(np.uint8)[..., None], 3, axis=-1)


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The colours without transparency, and the opacity in mode L; None where all is opaque."""
    if image.mode not in WITH_ALPHA and "transparency" not in image.info:
        return (image.convert("RGB") if image.mode == "P" else image), None
    grey = image.mode in GREY
    image = image.convert("LA") if image.mode == "La" else image
    rgba = image.convert("RGBA")
    return (rgba.getchannel("R") if grey else rgba.convert("RGB")), rgba.getchannel("A")


def _to_srgb(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    """A picture without transparency in mode RGB, by its profile where it has one that fits."""
    if profile:
        try:
            given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            mode = PROFILE_MODES.get(given.profile.xcolor_space, "")
            fits = mode == image.mode or (mode, image.mode) == ("RGB", "L")
            if fits and "sRGB" not in (given.profile.profile_description or ""):
                srgb = ImageCms.createProfile("sRGB")
                return ImageCms.profileToProfile(image.convert(mode), given, srgb, outputMode="RGB")
        except (ImageCms.PyCMSError, OSError, ValueError):
            notes.append("its colour profile is damaged and left out")
    if image.mode == "LAB":
        return ImageCms.profileToProfile(
            image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    return image.convert("RGB")
