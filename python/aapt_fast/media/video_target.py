# SPDX-License-Identifier: Apache-2.0
"""Checks of a video's path before any frame is made. No torch, so that the command line finds mistakes at once."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from aapt_fast.atomic import names_folder
from aapt_fast.errors import require
from aapt_fast.limits import require_disk, require_empty_folder, require_file_target, require_memory, require_writable

MEMORY_PER_PIXEL = {
    ".mp4": 250,
    ".gif": 60,
    "": 30,
}  # bytes of memory that writing takes, measured at 1 to 4 megapixels
DISK_PER_PIXEL = {".mp4": 0.02, ".gif": 0.2, "": 0.2}  # bytes of a file per pixel and video frame of the bundled models
LARGEST_SIDE = {".mp4": 16384, ".gif": 65535, "": 65535}  # pixels: of H.264, of GIF, and of what viewers open


NAME = "a file without a slash at its end, or a folder without a dot in its name"


def is_video_name(text: str) -> bool:
    """False for the text of a path with the ending of a file and the slash of a folder, which `Path` forgets."""
    return not (Path(text).suffix and names_folder(text))


def check_video_target(path: Path, argument: str = "path") -> None:
    """Raise the errors of `VideoWriter` for this path, named `argument`; no file stays."""
    ending = path.suffix.lower()
    expected = "a name ending in .mp4 or .gif, or a folder without a dot in its name"
    require(ending in LARGEST_SIDE, argument, expected, path)
    stem_is_missing = path.name.lower() in LARGEST_SIDE and path.name != ""
    require(not stem_is_missing, argument, f"a name before the ending, such as video{path.name}", path)
    if ending:
        require_file_target(argument, path)
    else:
        require_writable(argument, path.parent)
        require_empty_folder(argument, path)
    if ending == ".mp4" and importlib.util.find_spec("av") is None:
        raise ImportError(f"{argument}: writing .mp4 needs the package av: pip install 'aapt_fast[video]'")


def require_room(path: Path, frames: int, size: tuple[int, int], scale: int) -> None:
    """Raise ValueError if such a video fits neither its format, nor the memory, nor the disk, as far as can be known.

    `size` is (height, width), before it is enlarged by `scale`; an error names --scale or --frames.
    """
    ending = path.suffix.lower()
    largest = LARGEST_SIDE[ending] // max(size)
    require(scale <= largest, "--scale", f"1 to {largest} for a video of {size[1]} x {size[0]} pixels", scale)
    pixels = size[0] * size[1] * scale**2
    require_memory("--scale", pixels * MEMORY_PER_PIXEL[ending])
    require_disk("--frames", path, int(frames * pixels * DISK_PER_PIXEL[ending]))
