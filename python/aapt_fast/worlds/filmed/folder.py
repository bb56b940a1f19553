# SPDX-License-Identifier: Apache-2.0
"""A folder of videos to train on: what is in it, and what is wrong with it.

    walk.mp4      a video of any size and rate, whose name ends in one of `ENDINGS`
    walk.npy      its controls, if the model is to be controlled: float32 [T, J, 3] or [T, C, h, w], one for each of
                  the T frames that walk.mp4 stores. Either every video has controls, all of one shape, or none has.

Folders inside count, hidden files do not. Training reads videos at 24 frames per second and cuts out the middle of each
picture. Nothing is written into the folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aapt_fast.errors import require
from aapt_fast.media.video_file import ENDINGS, VideoFacts, examine_video, require_reader
from aapt_fast.worlds.world import FPS

SPAN = 60
"""Video frames of a clip beside its first one, which is the last one of the clip before."""


@dataclass(frozen=True)
class Film:
    """A video of the folder that can be trained on."""

    name: str
    """Its path from the folder, with "/" on every system."""
    stored: VideoFacts
    control: tuple[int, ...] | None
    """Shape of the control of a frame, [J, 3] or [C, h, w]; None without controls."""

    @property
    def frames(self) -> int:
        """Video frames at 24 per second."""
        return math.floor(self.stored.seconds * FPS + 1e-6)

    @property
    def clips(self) -> int:
        """Clips of 1 + `SPAN` video frames that it holds, one after the other."""
        return (self.frames - 1) // SPAN


@dataclass(frozen=True)
class Fault:
    """A file that cannot be trained on, and why."""

    name: str
    sentence: str

    def __str__(self) -> str:
        return self.sentence


@dataclass(frozen=True)
class Contents:
    """The films of a folder, ordered by name, and the faults that were found."""

    films: tuple[Film, ...]
    faults: tuple[Fault, ...]

    @property
    def clips(self) -> int:
        """Clips of all films together."""
        return sum(film.clips for film in self.films)


def look_through(folder: Path, decode: bool = False, looked_at: Callable[[], object] = lambda: None) -> Contents:
    """Examine every video of a folder, and the controls beside it.

    Args:
        folder: see above.
        decode: decode every picture, which finds damage inside of files and takes as long as watching them fast.
        looked_at: called after each video.

    Raises:
        ValueError: a folder that is not there, or has no video.
        ModuleNotFoundError: PyAV is not installed.
    """
    require_reader()
    videos, films, faults = video_paths(folder), [], []
    for path in videos:
        name = path.relative_to(folder).as_posix()
        try:
            films.append(_film(path, name, decode))
        except ValueError as error:
            faults.append(Fault(name, str(error)))
        looked_at()
    named = {path.with_suffix("") for path in videos}
    faults += [_lonely(path, folder) for path in _visible(folder) if _is_lonely(path, named)]
    faults += _other_controls(films, folder)
    wrong = {fault.name for fault in faults}
    return Contents(tuple(film for film in films if film.name not in wrong), tuple(faults))


def video_paths(folder: Path) -> list[Path]:
    """The videos of a folder and of those inside, by name. Raises ValueError for a folder that has none."""
    require(folder.is_dir(), "folder", "one that exists", folder)
    found = [path for path in _visible(folder) if path.suffix.lower() in ENDINGS]
    require(bool(found), "folder", f"one with videos ({', '.join(ENDINGS)})", f"{folder}, which has none")
    return found


def _visible(folder: Path) -> list[Path]:
    """Files that are not hidden."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def _is_lonely(path: Path, named: set[Path]) -> bool:
    return path.suffix == ".npy" and path.with_suffix("") not in named


def _lonely(controls: Path, folder: Path) -> Fault:
    name = controls.relative_to(folder).as_posix()
    return Fault(name, f"{controls}: expected a video of the same name beside it, got none")


def _film(path: Path, name: str, decode: bool) -> Film:
    """Raises ValueError for a video or controls that cannot be trained on."""
    facts = examine_video(path, decode)
    controls = path.with_suffix(".npy")
    shape = read_controls(controls, facts.frames).shape[1:] if controls.exists() else None
    film = Film(name, facts, shape)
    least = (1 + SPAN) / FPS
    require(film.clips >= 1, str(path), f"a video of at least {least:.2f} s, which is a clip", f"{facts.seconds:.2f} s")
    return film


def _other_controls(films: list[Film], folder: Path) -> list[Fault]:
    """Films whose controls differ from those of most, or which have none where most have some."""
    shapes = [film.control for film in films]
    usual = max(dict.fromkeys(shapes), key=shapes.count, default=None)
    return [
        Fault(
            film.name,
            f"{folder / film.name}: expected {_in_words(usual)}, as most videos have, got {_in_words(film.control)}",
        )
        for film in films
        if film.control != usual
    ]


def _in_words(shape: tuple[int, ...] | None) -> str:
    return "no controls" if shape is None else f"controls of shape [T, {', '.join(map(str, shape))}]"


def read_controls(path: Path, frames: int) -> np.ndarray:
    """The controls of `frames` stored frames: float32 [T, J, 3] or [T, C, h, w].

    Raises ValueError naming the file for another format, shape, length or dtype, and for numbers that are not finite.
    """
    try:
        controls = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(
            f"{path}: expected an array that numpy.save wrote, got one that cannot be read: {error}"
        ) from error
    require(isinstance(controls, np.ndarray), str(path), "one array", type(controls).__name__)
    fits = controls.ndim == 4 or (controls.ndim == 3 and controls.shape[2] == 3)
    require(fits and controls.size > 0, str(path), "an array [T, J, 3] or [T, C, h, w]", list(controls.shape))
    require(len(controls) == frames, str(path), f"{frames} controls, one for each frame of the video", len(controls))
    require(controls.dtype.kind == "f", str(path), "floating-point numbers", controls.dtype)
    require(bool(np.isfinite(controls).all()), str(path), "finite numbers", "NaN or infinity")
    return controls.astype(np.float32)
