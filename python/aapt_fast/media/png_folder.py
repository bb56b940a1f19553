# SPDX-License-Identifier: Apache-2.0
"""Folders of PNG pictures: 000000.png, 000001.png, ..."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

from PIL import Image


class PngFolder:
    """A new folder of whole pictures; a rate of frames is not recorded in them."""

    def __init__(self, path: Path, fps: Fraction) -> None:
        self._path, self._frames = path, 0
        path.mkdir()

    def write(self, image: Image.Image) -> None:
        """Write one RGB picture. Raises OSError on a full disk, and leaves no part of the picture then."""
        target, data = self._path / f"{self._frames:06d}.png", io.BytesIO()
        image.save(data, "PNG")
        try:
            target.write_bytes(data.getbuffer())
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        self._frames += 1

    def flush(self) -> None:
        """Nothing: every picture is written at once."""

    def close(self) -> int:
        """Number of pictures."""
        return self._frames
