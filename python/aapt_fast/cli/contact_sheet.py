# SPDX-License-Identifier: Apache-2.0
"""What `--sheet` writes: some frames of a video in one picture, in the format of the file's ending."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from aapt_fast.errors import require
from aapt_fast.training.sheet import save_sheet

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
LOSSY = {"quality": 95}


def check_sheet_target(path: Path) -> None:
    """Raise ValueError for another ending or a folder, OSError if the file's folder cannot be written."""
    expected = f"a name ending in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}"
    require(path.suffix.lower() in ENDINGS, "--sheet", expected, path.name or path)
    require(not path.is_dir(), "--sheet", "a file", f"the folder {path}")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise OSError(f"--sheet: expected a writable folder, got {path.parent}")


def write_sheet(path: Path, rows: Sequence[Tensor]) -> None:
    """Write `rows` of video frames [n, 3, H, W] in -1..1, twice as large; an unfinished file never stays behind."""
    ending = path.suffix.lower()
    lossless = path.with_name(f".{path.stem}.partial.png")
    partial = lossless.with_suffix(ending)
    try:
        save_sheet(lossless, rows, zoom=2)
        if partial != lossless:
            with Image.open(lossless) as picture:
                picture.save(partial, **LOSSY)
        os.replace(partial, path)
    finally:
        lossless.unlink(missing_ok=True)
        partial.unlink(missing_ok=True)
