# SPDX-License-Identifier: Apache-2.0
"""The first picture of a stream: the kinds that are taken, and how one of another size is cropped and scaled."""

from __future__ import annotations

import numpy
import torch
from PIL import Image
from torch import Tensor

from aapt_fast.errors import require, require_integer, require_plain, require_shape, warn_caller
from aapt_fast.limits import require_memory
from aapt_fast.media.pictures import show

ARRAYS = "uint8 [H, W, 3] or float [3, H, W]"
FROM_0_TO_1 = "for values in 0..1 pass 2 * image - 1, for 0..255 uint8 [H, W, 3]"


def as_picture(image: object, argument: str = "image") -> Tensor:
    """A picture of any size -> uint8 [H, W, 3], or float32 [3, H, W] in -1..1; maybe no copy.

    `image` is a PIL image of any mode, or a tensor or an array: uint8 [H, W, 3] or float [3, H, W] in -1..1. Raises
    TypeError for something else, ValueError for another shape, dtype or range; errors name `argument`.
    """
    if isinstance(image, Image.Image):
        image = show(image, argument).pixels
    if isinstance(image, numpy.ndarray):
        numbers = image.dtype.kind in "iuf" and image.dtype.itemsize <= 8
        require(numbers, argument, ARRAYS, f"an array of dtype {image.dtype}")
        image = torch.tensor(numpy.ascontiguousarray(image))
    if not isinstance(image, Tensor):
        raise TypeError(f"{argument}: expected a PIL image, {ARRAYS}, got {type(image).__name__}")
    require_plain(argument, image)
    require(image.dtype == torch.uint8 or image.is_floating_point(), argument, ARRAYS, image.dtype)
    require_shape(argument, image, *(("H", "W", 3) if image.dtype == torch.uint8 else (3, "H", "W")))
    require(image.numel() > 0, argument, "at least one pixel", f"shape {list(image.shape)}")
    if image.dtype == torch.uint8:
        return image
    picture = image.detach().float()
    low, high = (float(value) for value in picture.aminmax())
    require(low >= -1 and high <= 1, argument, f"values in -1..1 ({FROM_0_TO_1})", f"{low:g} to {high:g}")
    return picture


def picture_size(picture: Tensor) -> tuple[int, int]:
    """(height, width) of a result of `as_picture`, uint8 [H, W, 3] or float32 [3, H, W]."""
    height, width = picture.shape[:2] if picture.dtype == torch.uint8 else picture.shape[1:]
    return height, width


def require_size(picture: Tensor, size: tuple[int, int], argument: str = "image") -> None:
    """Raise ValueError unless `picture`, uint8 [H, W, 3] or float [3, H, W], has this `size`, (height, width).

    The message says how to crop and scale it.
    """
    height, width = size
    shape = [height, width, 3] if picture.dtype == torch.uint8 else [3, height, width]
    got = f"{list(picture.shape)}; aapt_fast.fit_picture({argument}, {width}, {height}) crops and scales it"
    require(picture_size(picture) == size, argument, f"shape {shape}", got)


def warn_of_0_to_1(picture: Tensor, argument: str = "image") -> None:
    """Warn the caller of the package of a float picture [3, H, W] that is grey and light if it was meant in 0..1."""
    if picture.is_floating_point() and float(picture.min()) >= 0:
        low, high = (float(value) for value in picture.aminmax())
        got = f"{low:g} to {high:g}; the picture is used as it is"
        warn_caller(f"{argument}: expected values in -1..1, got {got} ({FROM_0_TO_1})")


def crop_size(size: tuple[int, int], wanted: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the largest part of a picture of `size` with the aspect ratio of `wanted`."""
    (tall, wide), (height, width) = size, wanted
    return min(tall, max(1, round(wide * height / width))), min(wide, max(1, round(tall * width / height)))


def fit_picture(picture: object, width: int, height: int) -> numpy.ndarray:
    """The middle of a picture with the aspect ratio of `width` x `height`, resized to it: uint8 [height, width, 3].

        first = aapt_fast.FirstFrame(aapt_fast.fit_picture(PIL.Image.open("me.jpg"), 96, 96))

    Args:
        picture: of any size, as `FirstFrame` takes it: a PIL image, uint8 [H, W, 3], or float [3, H, W] in -1..1.
        width, height: in pixels; of a model, `height, width = model.video_size`.

    Raises:
        TypeError: an argument of another type.
        ValueError: a picture of another shape, dtype or range; a size below 1, or one that no memory has room for.
    """
    for name, size in (("width", width), ("height", height)):
        require_integer(name, size)
        require(size >= 1, name, "at least 1 pixel", size)
    require_memory("width x height", int(width) * int(height) * 3)
    pixels = as_picture(picture, "picture")
    warn_of_0_to_1(pixels, "picture")
    if pixels.is_floating_point():
        pixels = ((pixels + 1) * 127.5).round().byte().permute(1, 2, 0)
    tall, wide = picture_size(pixels)
    crop_tall, crop_wide = crop_size((tall, wide), (height, width))
    left, top = (wide - crop_wide) // 2, (tall - crop_tall) // 2
    whole = Image.fromarray(numpy.ascontiguousarray(pixels.cpu().numpy()))
    middle = whole.crop((left, top, left + crop_wide, top + crop_tall))
    return numpy.array(middle.resize((width, height), Image.Resampling.LANCZOS))
