# SPDX-License-Identifier: Apache-2.0
"""Values of options from their texts; a text that is none becomes a mistake of one line."""

from __future__ import annotations

import argparse
from pathlib import Path

from aapt_fast.atomic import names_folder
from aapt_fast.media.video_target import NAME, is_video_name


def any_path(text: str) -> Path:
    """Make a path of an option's text; `Path("")` would be the folder in which the command runs."""
    if not text:
        raise argparse.ArgumentTypeError("expected a file or folder, got an empty text")
    if text == "-":  # in other programs standard input or output
        raise argparse.ArgumentTypeError("expected a file or folder, got -; ./- is a file or folder of that name")
    return Path(text)


def file_path(text: str) -> Path:
    """Make a path of an option's text, which shall not name a folder."""
    if text and names_folder(text):
        raise argparse.ArgumentTypeError(f"expected a file, got {text}, which names a folder")
    return any_path(text)


def video_path(text: str) -> Path:
    """Make a path of an option's text, which names a video."""
    path = any_path(text)
    if not is_video_name(text):
        raise argparse.ArgumentTypeError(f"expected {NAME}, got {text}")
    return path


def integer(text: str) -> int:
    """Make an integer of an option's text."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected an integer, got {text or 'an empty text'}") from None


def number(text: str) -> float:
    """Make a number of an option's text."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got {text or 'an empty text'}") from None
