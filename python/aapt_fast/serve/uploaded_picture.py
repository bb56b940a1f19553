# SPDX-License-Identifier: Apache-2.0
"""Pictures that clients upload, read in the worker process."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from aapt_fast.errors import require
from aapt_fast.media.pictures import UNREADABLE, show

FORMATS = ("PNG", "JPEG", "WEBP")


def read_upload(data: bytes, most_pixels: int) -> np.ndarray:
    """A PNG, JPEG or WebP -> uint8 [H, W, 3]; a picture with more pixels is refused before it is decoded.

    Raises ValueError for everything else.
    """
    expected = f"a picture as {', '.join(FORMATS)}"
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as file:
            width, height = file.size
            expected = f"at most {most_pixels / 1e6:g} megapixels"
            require(width * height <= most_pixels, "image", expected, f"{width} x {height}")
            return show(file, "image").pixels
    except Image.DecompressionBombError:
        require(False, "image", f"at most {most_pixels / 1e6:g} megapixels", "many more")
        raise
    except Image.UnidentifiedImageError:
        raise ValueError(f"image: expected {expected}, got something else") from None
    except UNREADABLE as error:
        if str(error).startswith("image: "):
            raise
        raise ValueError(f"image: expected {expected}, got a damaged one: {error}") from error
