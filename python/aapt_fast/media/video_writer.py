# SPDX-License-Identifier: Apache-2.0
"""Video files: frames go to an .mp4, a .gif or a folder of PNGs as they come; a video that is cut short is kept."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from numbers import Rational, Real
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from aapt_fast.atomic import mode_of, naming, partial_name
from aapt_fast.errors import require, require_type
from aapt_fast.media.destination import Destination
from aapt_fast.media.gif import GifFile
from aapt_fast.media.mp4 import Mp4File
from aapt_fast.media.png_folder import PngFolder
from aapt_fast.media.video_target import LARGEST_SIDE, NAME, check_video_target, is_video_name

LARGEST_FLOAT_DENOMINATOR = 1001  # of the rates of television: 24000/1001, 30000/1001
LARGEST_DENOMINATOR = 1_000_000  # times FASTEST, a clock that an .mp4 can have: 32 bits
FASTEST = {".mp4": 1000, ".gif": 50, "": 1000}  # video frames per second; players slow a faster GIF down


def save_video(path: str | Path, frames: Iterable[Tensor | np.ndarray], fps: float | Fraction = 24) -> None:
    """Write a video for people to watch.

    Args:
        path: x.mp4 (needs the extra `video`), x.gif, or a new folder for PNGs. An existing file is replaced at the end.
        frames: uint8 [T, H, W, 3], or pieces [n, H, W, 3] of it one after the other, as steps of a session give them:
            a list of them, or an iterator such as `session.frames(player, steps=60)`, of which nothing is kept in
            memory.
        fps: video frames per second: 24, 23.976, or Fraction(24000, 1001). An .mp4 keeps it as a fraction, a float to
            the nearest one with a denominator of at most 1001; a GIF rounds the time of each frame to 1/100 s, and a
            folder of PNGs keeps no rate.

    Raises:
        TypeError, ValueError: frames of another shape, dtype or size, no frames at all; another ending or rate; a path
            that is none.
        OSError: the file cannot be written.
        ImportError: .mp4 without the `av` package.

    After an error in the middle the video frames that are whole in the file are kept, beside an existing file; without
    room for them all a file is called x.stopped.mp4, even if x.mp4 is free. A note on the error (before Python 3.11 a
    warning) names the file, or says that nothing was kept. A file that another program makes under that name meanwhile
    is not replaced: a warning gives the other name. See `VideoWriter`.

        aapt_fast.save_video("walk.mp4", session.frames(player, steps=60))
    """
    require_type("path", path, str, os.PathLike)
    require(is_video_name(os.fspath(path)), "path", NAME, path)
    require_type("frames", frames, Tensor, np.ndarray, Iterable)
    pieces = [frames] if isinstance(frames, Tensor | np.ndarray) else frames
    writer = VideoWriter(Path(path), fps=fps)
    try:
        with writer:
            for piece in pieces:
                writer.write(piece)
            require(writer.frames > 0, "frames", "at least one video frame", "none")
    except BaseException as error:
        _note_kept(error, writer)
        raise
    if writer.kept != writer.path:
        warnings.warn(f"path: another program has made {path} meanwhile; the video is in {writer.kept}", stacklevel=2)


def _note_kept(error: BaseException, writer: VideoWriter) -> None:
    """Add to an error what there is of the video."""
    some = f"the video is not finished: its first {writer.frames} video frames are in {writer.kept}"
    text = "nothing was kept: no video frame was finished" if writer.kept is None else some
    if hasattr(error, "add_note"):
        error.add_note(text)
    else:  # Python 3.10
        warnings.warn(text, stacklevel=3)


class VideoWriter:
    """Context manager that writes a video to `path`, which it replaces only if the block ends without an error.

    What another program has made under that name meanwhile stays, and the video is beside it, in x-2.mp4, x-3.mp4 and
    so on. After an error the frames so far are kept: in `path` if there was nothing, else beside it, in x.stopped.mp4,
    x.stopped-2.mp4 and so on; after an error of a full disk a file is always called so. `kept` says where. Nothing is
    kept of a video without frames, and no other file stays.

    Raises ValueError for another suffix, rate or scale, OSError if the target's folder cannot be written, ImportError
    for .mp4 without the `av` package.
    """

    frames = 0
    """Video frames written so far; after the block those in `kept`."""
    kept: Path | None = None
    """File or folder with the video after the block; None if there is none."""

    def __init__(self, path: Path, *, fps: float | Fraction = 24, scale: int = 1) -> None:
        check_video_target(path)
        self._ending = path.suffix.lower()  # of a link, whose file may have another
        self._fps = _exact_rate(fps, self._ending)
        require(scale >= 1, "scale", "at least 1", scale)
        self._destination = Destination(path)
        self.path = self._destination.path
        self._partial = partial_name(self.path, self._ending)
        self._scale = scale
        self._size: tuple[int, int] | None = None
        self._file: _File | None = None
        self._broken = False  # the system has refused to write

    def write(self, frames: Tensor | np.ndarray) -> None:
        """Append video frames uint8 [n, H, W, 3]. Raises TypeError or ValueError for others, OSError on a full disk."""
        for frame in self._checked(frames):
            image = Image.fromarray(np.ascontiguousarray(frame))
            if self._scale > 1:
                size = (image.width * self._scale, image.height * self._scale)
                image = image.resize(size, Image.Resampling.BICUBIC)
            with self._noticing():
                if self._file is None:
                    self._file = _KINDS[self._ending](self._partial, self._fps)
                self._file.write(image)
            self.frames += 1

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        complete = kind is None
        try:
            if self._file is not None:
                with self._noticing():
                    self._file.flush()
        except Exception:
            if complete:
                complete = False
                raise  # else the first error is the one to hear about
        finally:
            self._close(complete)

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        """Name the file in an error of the system, and remember that it cannot be completed."""
        try:
            with naming(self.path):
                yield
        except OSError:
            self._broken = True
            raise

    def _close(self, complete: bool) -> None:
        """Move what was written to its place."""
        try:
            if self._file is not None:
                self.frames = self._file.close()
            if self.frames > 0:
                target = self._destination.name() if complete else self._stopped_name()
                if target.is_dir():
                    target.rmdir()  # it is empty
                elif mode := mode_of(target):
                    self._partial.chmod(mode)  # a file keeps its permissions when it is replaced
                os.replace(self._partial, target)
                self.kept = target
        finally:
            shutil.rmtree(self._partial, ignore_errors=True)
            self._partial.unlink(missing_ok=True)

    def _stopped_name(self) -> Path:
        """The path for the frames so far; pictures in a folder are whole and need no other name."""
        return self._destination.name_if_stopped(broken=self._broken and self._ending != "")

    def _checked(self, frames: Tensor | np.ndarray) -> np.ndarray:
        """`frames` as an array. Raises TypeError, ValueError unless they are uint8 [n, H, W, 3] of the first size."""
        require_type("frames", frames, Tensor, np.ndarray)
        array: np.ndarray = frames.detach().cpu().numpy() if isinstance(frames, Tensor) else frames
        fits = array.dtype == np.uint8 and array.ndim == 4 and array.shape[3] == 3
        require(fits, "frames", "uint8 [n, H, W, 3]", f"{array.dtype} {list(array.shape)}")
        height, width = array.shape[1:3]
        largest = LARGEST_SIDE[self._ending]
        fits = min(height, width) >= 1 and max(height, width) * self._scale <= largest
        require(fits, "frames", f"1 to {largest} pixels on each side", f"{width} x {height} times {self._scale}")
        self._size = self._size or (height, width)
        expected = f"{self._size[1]} x {self._size[0]} pixels as before"
        require((height, width) == self._size, "frames", expected, f"{width} x {height}")
        return array


def _exact_rate(fps: float | Fraction, ending: str) -> Fraction:
    """A rate as a fraction. Raises TypeError for no real number, ValueError for one that the format cannot keep."""
    if isinstance(fps, bool) or not isinstance(fps, Real):
        raise TypeError(f"fps: expected a number or a Fraction, got {type(fps).__name__}")
    fits = 1 <= fps <= FASTEST[ending]  # nan is not, either
    require(fits, "fps", f"1 to {FASTEST[ending]} for {ending or 'a folder'}", fps)
    if not isinstance(fps, Rational):
        return Fraction(float(fps)).limit_denominator(LARGEST_FLOAT_DENOMINATOR)
    rate = Fraction(fps)
    expected = f"a fraction with a denominator of at most {LARGEST_DENOMINATOR}, such as 24000/1001"
    require(rate.denominator <= LARGEST_DENOMINATOR, "fps", expected, rate)
    return rate


class _File(Protocol):
    """A video file or folder that is being written."""

    def __init__(self, path: Path, fps: Fraction) -> None: ...

    def write(self, image: Image.Image) -> None:
        """Append one RGB picture."""

    def flush(self) -> None:
        """Write what is still in memory. Raises OSError on a full disk."""

    def close(self) -> int:
        """Complete the file with what was written, also after an error; returns its number of video frames."""


_KINDS: dict[str, type[_File]] = {".mp4": Mp4File, ".gif": GifFile, "": PngFolder}
