# SPDX-License-Identifier: Apache-2.0
"""H.264 files that every player takes, with the colours of the RGB pictures."""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

BT709, LIMITED = 1, 1  # numbers of H.264 for colour matrix, primaries and transfer, and for the range 16..235
QUALITY = "16"  # x264's constant rate factor: lower is better, 18 looks lossless
SECOND_FILE = ".whole"


class Mp4File:
    """Writes fragments of a second as frames come, and at the end one file whose index is at the front.

    So whatever ends the process, a full disk or a kill, leaves a file that plays up to the last fragment.

    RGB becomes Y'CbCr by BT.709 in limited range, and the file says so: without the tags, players guess the matrix from
    the size of the video. 4:2:0 needs even sides: an odd last row or column is repeated.
    """

    def __init__(self, path: Path, fps: Fraction) -> None:
        import av

        self._av, self._path, self._fps = av, path, fps
        self._file = _CheckedFile(path, "wb")
        options = {"movflags": "frag_keyframe+empty_moov"}
        self._container: Any = av.open(self._file, "w", format="mp4", options=options)
        self._stream: Any = None
        self._intact = True

    def write(self, image: Image.Image) -> None:
        """Append one RGB picture. Raises OSError on a full disk."""
        pixels = np.asarray(image)
        height, width = pixels.shape[:2]
        if height % 2 or width % 2:
            pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self._stream is None:
            self._stream = self._open_stream(pixels.shape[1], pixels.shape[0])
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        self._mux(frame.reformat(format="yuv420p", dst_colorspace=BT709, dst_color_range=LIMITED))

    def flush(self) -> None:
        """Write the frames that the encoder still looks at, and the last fragment. Raises OSError on a full disk."""
        if self._intact and self._stream is not None:
            self._mux(None)
            self._container.close()
            self._file.check()

    def close(self) -> int:
        """Complete the file with the frames that reached it; returns their number.

        Without room for a second file the whole fragments stay, which play as well; the one that a full disk has cut
        short is left out, as players show errors in it.
        """
        with contextlib.suppress(OSError), self._file:  # a full disk was an error before
            self._container.close()
        try:
            return self._put_index_first()
        except OSError:
            whole = _end_of_fragments(self._path)
            os.truncate(self._path, whole)
            if whole == 0:
                return 0
            with self._av.open(str(self._path)) as source:
                return sum(1 for _ in _whole_packets(source))

    def _open_stream(self, width: int, height: int) -> Any:
        options = {"crf": QUALITY, "g": str(math.ceil(self._fps))}
        stream = self._container.add_stream("libx264", rate=self._fps, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED
        return stream

    def _mux(self, frame: Any) -> None:
        """Encode one frame, or the rest for None, and write what comes out."""
        self._intact = False
        for packet in self._stream.encode(frame):
            self._container.mux(packet)
        self._intact = True

    def _put_index_first(self) -> int:
        """Copy the fragments into a file with one index; returns the number of frames."""
        whole = self._path.with_suffix(SECOND_FILE + self._path.suffix)
        frames = 0
        try:
            with (
                self._av.open(str(self._path)) as source,
                self._av.open(str(whole), "w", format="mp4", options={"movflags": "faststart"}) as target,
            ):
                (given,) = source.streams.video
                stream, start = target.add_stream_from_template(given), given.start_time or 0
                for packet in _whole_packets(source):
                    packet.pts, packet.dts, packet.stream = packet.pts - start, packet.dts - start, stream
                    target.mux(packet)
                    frames += 1
            os.replace(whole, self._path)
        finally:
            whole.unlink(missing_ok=True)
        return frames


def _end_of_fragments(path: Path) -> int:
    """Bytes up to the end of the last whole fragment of an .mp4, which ends with its box `mdat`; 0 without one."""
    length, position, end = path.stat().st_size, 0, 0
    with path.open("rb") as file:
        while len(header := file.read(16)) >= 8:
            size, kind = int.from_bytes(header[:4], "big"), header[4:8]
            if size == 1:  # the size is in 64 bits
                size = int.from_bytes(header[8:], "big")
            position += size
            if size < 8 or position > length:
                break
            end = position if kind == b"mdat" else end
            file.seek(position)
    return end


def _whole_packets(source: Any) -> Iterator[Any]:
    """Packets of an open file; without the last if a full disk has cut it short."""
    for packet in source.demux(video=0):
        if packet.is_corrupt:
            return
        if packet.size:  # the end is a packet without contents
            yield packet


class _CheckedFile(io.FileIO):
    """A file without a buffer that remembers a failed write: the library does not report all of them."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = error
            raise
        return len(data)

    def check(self) -> None:
        if self.error is not None:
            raise self.error
