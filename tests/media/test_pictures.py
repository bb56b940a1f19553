# SPDX-License-Identifier: Apache-2.0
"""Every kind of picture becomes the pixels that a viewer shows, or is refused by name."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from aapt_fast.media.pictures import read_picture, show

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOURS = np.stack([RAMP, RAMP.T, 255 - RAMP], axis=-1)
GREY = np.repeat(RAMP[..., None], 3, axis=-1)


def saved(tmp_path: Path, image: Image.Image, ending: str, **options: object) -> Path:
    path = tmp_path / f"x.{ending}"
    image.save(path, **options)
    return path


@pytest.mark.parametrize("ending", ["png", "tiff", "bmp", "webp", "gif", "ppm"])
def test_8_bits_stay_as_they_are(tmp_path: Path, ending: str):
    options = {"lossless": True} if ending == "webp" else {}
    colours = np.repeat(np.repeat(COLOURS[::4, ::4], 4, 0), 4, 1)  # few enough for a palette
    picture = read_picture(saved(tmp_path, Image.fromarray(colours), ending, **options), "image")
    assert np.array_equal(picture.pixels, colours) and picture.notes == () and picture.pixels.dtype == np.uint8


@pytest.mark.parametrize("ending", ["png", "tiff", "pgm"])
def test_16_bits_of_grey_are_scaled(tmp_path: Path, ending: str):
    deep = Image.fromarray(RAMP.astype(np.uint16) * 257)
    assert np.array_equal(read_picture(saved(tmp_path, deep, ending), "image").pixels, GREY)


def test_16_bits_are_rounded():
    values = np.array([[0, 128, 129, 32767, 32768, 65535]], np.uint16)
    assert show(Image.fromarray(values)).pixels[0, :, 0].tolist() == [0, 0, 1, 127, 128, 255]


def test_32_bits_hold_16_or_are_refused():
    assert np.array_equal(show(Image.fromarray(RAMP.astype(np.int32) * 257)).pixels, GREY)
    assert show(Image.fromarray(np.zeros((2, 2), np.int32))).pixels.max() == 0
    for values in (RAMP.astype(np.int32), RAMP.astype(np.int32) - 1, RAMP.astype(np.int32) * 1000):
        with pytest.raises(
            ValueError, match=r"image: expected grey values up to 65535, which is white, got -?\d+ to \d+"
        ):
            show(Image.fromarray(values))


def test_float_in_0_to_1(tmp_path: Path):
    path = saved(tmp_path, Image.fromarray(RAMP.astype(np.float32) / 255), "tiff")
    assert np.array_equal(read_picture(path, "image").pixels, GREY)


@pytest.mark.parametrize("bad", [255.0, -0.01, np.nan, np.inf])
def test_other_float_is_refused(tmp_path: Path, bad: float):
    values = RAMP.astype(np.float32) / 255
    values[3, 3] = bad
    with pytest.raises(ValueError, match="--image: expected float values from 0, black, to 1, white, got "):
        read_picture(saved(tmp_path, Image.fromarray(values), "tiff"), "--image")


def test_black_and_white(tmp_path: Path):
    pixels = read_picture(saved(tmp_path, Image.fromarray(RAMP > 127), "png"), "image").pixels
    assert np.array_equal(pixels, np.where(GREY > 127, 255, 0))


def test_a_palette(tmp_path: Path):
    image = Image.fromarray(COLOURS).quantize(16)
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(read_picture(saved(tmp_path, image, "png"), "image").pixels, expected)


OVER_WHITE = ("transparent parts are shown over white",)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_hidden_colours_never_show(mode: str):
    """The left half is transparent and hides red; the right half is opaque."""
    colours = GREY if mode in ("LA", "La") else np.full_like(COLOURS, (200, 30, 60))
    image = Image.fromarray(colours)
    alpha = np.full(RAMP.shape, 255, np.uint8)
    alpha[:, :8] = 0
    image.putalpha(Image.fromarray(alpha))
    if mode in ("LA", "La"):
        image = image.convert("LA")
    elif mode == "PA":
        image = Image.fromarray(colours).quantize(4).convert("PA")
        image.putalpha(Image.fromarray(alpha))
    picture = show(image if image.mode == mode else image.convert(mode))
    assert (picture.pixels[:, :8] == 255).all() and np.array_equal(picture.pixels[:, 8:], colours[:, 8:])
    assert picture.notes == OVER_WHITE


def test_half_transparent_is_half_white():
    image = Image.new("RGBA", (2, 2), (0, 100, 200, 128))
    assert np.abs(show(image).pixels[0, 0].astype(int) - (127, 177, 227)).max() <= 1


def test_opaque_alpha_is_no_news():
    image = Image.fromarray(COLOURS)
    image.putalpha(255)
    assert show(image).notes == () and np.array_equal(show(image).pixels, COLOURS)


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "I;16"])
def test_one_transparent_colour(tmp_path: Path, mode: str):
    if mode == "I;16":
        image, transparent = Image.fromarray(np.full((4, 4), 500, np.uint16)), 500
    else:
        image = Image.new("RGB", (4, 4), (7, 7, 7))
        image = image.quantize(4) if mode == "P" else image.convert(mode)
        transparent = {"P": image.getpixel((0, 0)), "L": 7, "RGB": (7, 7, 7)}[mode]
    path = saved(tmp_path, image, "png", transparency=transparent)
    assert (read_picture(path, "image").pixels == 255).all()


def test_cmyk(tmp_path: Path):
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert read_picture(saved(tmp_path, image, "tiff"), "image").pixels[0, 0].tolist() == [255, 0, 0]
    jpeg = read_picture(saved(tmp_path, image, "jpg", quality=100), "image").pixels[4, 4]
    assert np.abs(jpeg.astype(int) - (255, 0, 0)).max() <= 4


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "LAB"])
def test_other_colour_spaces(mode: str):
    grey = {"YCbCr": (128, 128, 128), "HSV": (0, 0, 128), "LAB": (137, 128, 128)}[mode]
    pixel = show(Image.new(mode, (2, 2), grey)).pixels[0, 0].astype(int)
    assert np.abs(pixel - 128).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "tiff", "jpg"])
def test_the_orientation_of_a_camera(tmp_path: Path, orientation: int, ending: str):
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :8], upright[:8, 8:] = 255, 120
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(np.ascontiguousarray(stored)), ending, exif=exif)
    assert np.abs(read_picture(path, "image").pixels.astype(int) - upright).max() <= 8


@pytest.mark.parametrize("ending", ["gif", "png", "webp", "tiff"])
def test_the_first_of_several_frames(tmp_path: Path, ending: str):
    first, second = Image.new("RGB", (8, 8), (250, 0, 0)), Image.new("RGB", (8, 8), (0, 250, 0))
    picture = read_picture(saved(tmp_path, first, ending, save_all=True, append_images=[second]), "image")
    assert np.abs(picture.pixels.astype(int) - (250, 0, 0)).max() <= 3
    assert picture.notes == ("the first of its 2 pictures is used",)


def wide_gamut() -> bytes:
    """A matrix profile whose red and green primaries are exchanged, so that a reader who ignores it shows it."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = profile.index(b"rXYZ"), profile.index(b"gXYZ")
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(profile).replace(b"sRGB", b"swap").replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))


@pytest.mark.parametrize("alpha", [False, True])
def test_a_colour_profile_is_converted(tmp_path: Path, alpha: bool):
    image = Image.new("RGB", (8, 8), (200, 40, 40))
    if alpha:
        image.putalpha(255)
    path = saved(tmp_path, image, "png", icc_profile=wide_gamut())
    assert np.abs(read_picture(path, "image").pixels[0, 0].astype(int) - (40, 200, 40)).max() <= 2


def test_a_profile_of_srgb_changes_nothing(tmp_path: Path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = saved(tmp_path, Image.fromarray(COLOURS), "png", icc_profile=profile)
    assert np.array_equal(read_picture(path, "image").pixels, COLOURS)


def test_a_damaged_profile_is_left_out(tmp_path: Path):
    picture = read_picture(saved(tmp_path, Image.fromarray(COLOURS), "png", icc_profile=b"words" * 40), "image")
    assert np.array_equal(picture.pixels, COLOURS)
    assert picture.notes == ("its colour profile is damaged and left out",)


def test_no_picture_is_told_from_a_missing_and_a_damaged_one(tmp_path: Path):
    noise = Image.effect_noise((64, 64), 50)
    whole = io.BytesIO()
    noise.save(whole, "PNG")
    (tmp_path / "half.png").write_bytes(whole.getvalue()[:1000])
    (tmp_path / "text.png").write_text("words")
    (tmp_path / "empty.png").touch()
    texts = {
        "half.png": "--image: expected an undamaged, readable picture, got .*half.png: ",
        "text.png": "--image: expected a picture file, got .*text.png, which is no picture",
        "empty.png": "--image: expected a picture file, got .*empty.png, which is no picture",
        "missing.png": "--image: expected a picture file, got .*missing.png, which does not exist",
        ".": "--image: expected a picture file, got the folder ",
    }
    for name, text in texts.items():
        with pytest.raises(ValueError, match=text):
            read_picture(tmp_path / name, "--image")
    with pytest.raises(ValueError, match="--image: expected a picture file, got an empty text"):
        read_picture("", "--image")


def test_a_picture_that_is_too_large_is_refused_with_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (4000, 3000)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2_000_000)
    message = r"^--image: expected a picture of at most 4 megapixels, got .*large\.png with 12$"
    with pytest.raises(ValueError, match=message):
        read_picture(tmp_path / "large.png", "--image")


@pytest.mark.filterwarnings("error")
def test_a_large_picture_is_read_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (300, 200)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40_000)  # half as many again are read, twice as many are not
    assert read_picture(tmp_path / "large.png", "--image").pixels.shape == (200, 300, 3)


def test_an_image_of_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "half.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:5000])
    with (
        Image.open(path) as image,
        pytest.raises(ValueError, match=r"^image: expected an undamaged, readable picture, "),
    ):
        show(image)
