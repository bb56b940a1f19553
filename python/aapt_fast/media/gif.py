# SPDX-License-Identifier: Apache-2.0
"""GIF files, written frame by frame. A GIF counts time in 1/100 s."""

from __future__ import annotations

import contextlib
from fractions import Fraction
from pathlib import Path

from PIL import GifImagePlugin, Image

COLOURS = 256
TRAILER = b";"


class GifFile:
    """Endless loop with a palette per frame, each frame shown so that the time of the whole video is right.

    At 24 frames per second they last 4, 4, 4, 5, 4, 4, ... hundredths: each begins at most half of one early or late.
    """

    def __init__(self, path: Path, fps: Fraction) -> None:
        self._file, self._fps = path.open("wb", buffering=0), fps  # no buffer: one that a full disk refuses stays full
        self._frames, self._end = 0, 0  # end of the last whole frame, in bytes

    def write(self, image: Image.Image) -> None:
        """Append one RGB picture. Raises OSError on a full disk."""
        coloured = image.quantize(COLOURS)
        if self._frames == 0:
            header, _ = GifImagePlugin.getheader(coloured, info={"loop": 0})
            self._append(b"".join(header))
        hundredths = self._time(self._frames + 1) - self._time(self._frames)
        data = GifImagePlugin.getdata(coloured, duration=10 * hundredths, include_color_table=True)
        self._append(b"".join(data))
        self._frames, self._end = self._frames + 1, self._file.tell()

    def flush(self) -> None:
        """Nothing: every frame is written at once."""

    def close(self) -> int:
        """End the file after the last whole frame; returns the number of frames."""
        with contextlib.suppress(OSError), self._file:  # no room for the last byte, which viewers do without
            self._file.truncate(self._end)
            self._file.seek(self._end)
            self._file.write(TRAILER)
        return self._frames

    def _append(self, data: bytes) -> None:
        while data:
            data = data[self._file.write(data) :]

    def _time(self, frame: int) -> int:
        """Hundredths of a second at which a frame begins."""
        return round(100 * frame / self._fps)
