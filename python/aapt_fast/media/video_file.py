# SPDX-License-Identifier: Apache-2.0
"""Reading of video files through PyAV, the extra `video`: how long they are, and frames of them at an even rate."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from aapt_fast.errors import require
from aapt_fast.media.first_picture import fit_picture

ROUNDING_S = 1e-3
"""Seconds by which times in files are rounded at most."""
ENDINGS = (".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
"""Ends of the names of video files, in lower case."""


@dataclass(frozen=True)
class VideoFacts:
    """A video file as it is stored."""

    width: int
    height: int
    frames: int
    seconds: float
    """From the first frame to the end of the last one."""

    @property
    def fps(self) -> float:
        """Mean frames per second."""
        return self.frames / self.seconds


def require_reader() -> None:
    """Raise ModuleNotFoundError, with the command that helps, where PyAV is not installed."""
    if importlib.util.find_spec("av") is None:
        raise ModuleNotFoundError("reading videos needs PyAV: pip install 'aapt_fast[video]'")


def examine_video(path: Path, decode: bool = False) -> VideoFacts:
    """Count the frames of a file: by its packets, or with `decode` by its pictures, which finds damage inside.

    Raises ValueError naming the file if it is no video, is damaged, or has less than two frames.
    """
    with _opened(path) as (container, stream):
        if decode:
            times = [frame.time for frame in container.decode(stream)]
        else:
            packets = [packet for packet in container.demux(stream) if packet.pts is not None]
            times = sorted(float(packet.pts * packet.time_base) for packet in packets)
        width, height = stream.codec_context.width, stream.codec_context.height
    require(len(times) >= 2, str(path), "a video of at least 2 frames", f"one of {len(times)}")
    require(None not in times, str(path), "a time for every frame", "a frame without one")
    period = (times[-1] - times[0]) / (len(times) - 1)
    require(period > 0, str(path), "frames whose times ascend", f"{len(times)} frames in {times[-1] - times[0]:.3f} s")
    return VideoFacts(width, height, len(times), times[-1] - times[0] + period)


def read_frames(path: Path, first: int, frames: int, fps: float, size: int) -> numpy.ndarray:
    """Frames `first` .. `first` + `frames` - 1 of a video at `fps`: those that are on the screen at these times.

    The middle of each picture is cut out as a square and resized: uint8 [frames, size, size, 3].

    Raises ValueError, naming the file, if it is no video, is damaged, or ends before the last of the frames.
    """
    due = [number / fps + ROUNDING_S for number in range(first, first + frames)]
    pictures: list[numpy.ndarray] = []
    for seek in (True, False) if first else (False,):
        with _opened(path) as (container, stream):
            begin = float((stream.start_time or 0) * stream.time_base)
            if seek:
                container.seek(int((begin + due[0]) / stream.time_base), stream=stream, backward=True)
            pictures = list(_on_screen(container.decode(stream), begin, due, float(stream.average_rate or fps), size))
        if len(pictures) == frames:  # else the file may have no index to seek by
            break
    expected = f"a video with frames {first} to {first + frames - 1} at {fps:g} per second"
    require(len(pictures) == frames, str(path), expected, f"one that shows {len(pictures)} of them")
    return numpy.stack(pictures)


def _on_screen(decoded: Iterable[Any], begin: float, due: Sequence[float], rate: float, size: int) -> Iterator[Any]:
    """The pictures uint8 [size, size, 3] that are shown at the times `due`, as far as `decoded` frames go.

    A frame is shown until the next, and the last one for 1 / `rate` seconds. Times count from `begin`.
    """
    shown, picture, waiting = None, None, list(due)
    for frame in itertools.chain(decoded, [None]):
        until = frame.time - begin if frame is not None else shown.time - begin + 1 / rate if shown is not None else 0.0
        while waiting and waiting[0] < until:
            if shown is None:
                return  # the first frame that was found is later
            if picture is None:
                picture = fit_picture(shown.to_ndarray(format="rgb24"), size, size)
            waiting.pop(0)
            yield picture
        if not waiting:
            return
        shown, picture = frame, None


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream; an error of reading becomes a ValueError that names the file."""
    require_reader()
    import av

    try:
        with av.open(str(path)) as container:
            require(bool(container.streams.video), str(path), "a file with a video", "one without")
            yield container, container.streams.video[0]
    except (av.FFmpegError, OSError) as error:
        raise ValueError(f"{path}: expected a video that can be read, got one where reading fails: {error}") from error
