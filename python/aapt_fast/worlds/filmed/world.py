# SPDX-License-Identifier: Apache-2.0
"""The world of one's own videos: clips cut from a folder of files, each with its controls or without any."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from aapt_fast.errors import require
from aapt_fast.media.video_file import read_frames
from aapt_fast.worlds.filmed.folder import SPAN, Film, look_through, read_controls
from aapt_fast.worlds.script import read_script
from aapt_fast.worlds.world import FPS, MEDLEY, Clip, FirstFrame, Oddity, Player

CELL = 8  # pixels of a latent cell
HELD_OUT = 10  # one clip in so many is kept for evaluations, from the end of the last films
STILL = "still"


@dataclass(frozen=True)
class FilmedWorld:
    """Clips of the films of a folder, in the order of their names; `FilmedWorld()` has none, and plays only.

    Without controls a clip has one map of zeros, as a model of this package has a control always. Seeds change nothing:
    what a clip shows is filmed. The last tenth of the clips is held out; for these, `held_out` is True.
    """

    folder: str = ""
    films: tuple[Film, ...] = ()
    held_out: bool = False

    name: ClassVar[str] = "filmed"
    actions: ClassVar[tuple[str, ...]] = (STILL,)
    has_chance: ClassVar[bool] = False

    @classmethod
    def of(cls, folder: Path, skip_faults: bool = False) -> FilmedWorld:
        """The world of a folder. Raises ValueError, naming the first of its faults, unless they are to be skipped."""
        found = look_through(folder)
        if found.faults and not skip_faults:
            more = f" (and {len(found.faults) - 1} more)" if len(found.faults) > 1 else ""
            raise ValueError(f"{found.faults[0]}{more}; `aapt-fast data check {folder}` lists all")
        return cls(str(folder.resolve()), found.films)

    @property
    def control(self) -> tuple[int, ...] | None:
        """Shape of the control of a video frame, [J, 3] or [C, h, w]; None without controls."""
        return self.films[0].control if self.films else None

    @property
    def clips(self) -> int:
        """Clips of this part of the folder."""
        return len(self._part())

    def evaluated(self) -> FilmedWorld:
        """The part that is held out."""
        return dataclasses.replace(self, held_out=True)

    def settings(self) -> dict[str, Any]:
        """The films by name, length and size, and not the folder, which may be moved."""
        films = [dataclasses.asdict(film) for film in self.films]
        digest = hashlib.sha256(json.dumps(films, sort_keys=True).encode()).hexdigest()
        return {"world": self.name, "films": digest[:16], "held_out": self.held_out}

    def scene(self, seed: int, clip: int) -> int:
        """Every clip is a scene of its own: how films belong together is not known."""
        return clip

    def clip(self, seed: int, clip: int, frames: int, size: int, future: int = 0) -> Clip:
        """Read clip number `clip`; at most 1 + `SPAN` video frames. Raises ValueError for another number or length."""
        part = self._part()
        require(0 <= clip < len(part), "clip", f"0..{len(part) - 1}, the clips of the folder", clip)
        require(frames <= 1 + SPAN, "frames", f"at most {1 + SPAN}, the length of a clip", frames)
        film, first = part[clip]
        path = Path(self.folder, film.name)
        video = torch.from_numpy(read_frames(path, first, frames, FPS, size))
        if film.control is None:
            return Clip(video, torch.zeros(frames, 1, size // CELL, size // CELL))
        stored = read_controls(path.with_suffix(".npy"), film.stored.frames)
        times = np.arange(first, first + frames) / FPS
        shown = np.minimum((times * film.stored.fps + 1e-3).astype(np.int64), len(stored) - 1)
        return Clip(video, torch.from_numpy(stored[shown]))

    def mirrored(self, seed: int, clip: int, frames: int, size: int) -> None:
        """Nobody has filmed what mirrored controls would have shown."""
        return None

    def first_frame(self, seed: int, clip: int, size: int) -> FirstFrame:
        """The first picture of a clip. Its `pose` keeps the control: number of dimensions, shape, and values if any."""
        found = self.clip(seed, clip, 1, size)
        control = found.controls[0]
        values = control.flatten().tolist() if control.any() else []
        pose = tuple(map(float, (control.dim(), *control.shape, *values)))
        return self.from_gallery(found.video[0].numpy(), pose, clip)

    def from_gallery(self, image: np.ndarray, pose: tuple[float, ...], scene: int | None) -> FirstFrame:
        """The first frame again, with the control that `first_frame` has put into `pose`."""
        dimensions = int(pose[0])
        shape, values = tuple(map(int, pose[1 : 1 + dimensions])), pose[1 + dimensions :]
        require(
            len(values) in (0, math.prod(shape)), "pose", f"no value or those of a control {list(shape)}", len(values)
        )
        control = torch.tensor(values).view(shape) if values else torch.zeros(shape)
        return FirstFrame(image, control, pose, scene)

    def draw_controls(self, controls: Tensor, size: int) -> Tensor:
        """Pictures of controls [N, J, 3] or [N, C, h, w]: white points at joints, or the first three maps."""
        if controls.dim() == 4:
            maps = controls[:, [0, 1 % controls.shape[1], 2 % controls.shape[1]]]
            maps = (maps - maps.amin()) / (maps.amax() - maps.amin()).clamp_min(1e-6)
            return torch.nn.functional.interpolate(maps, size=(size, size))
        pictures = torch.zeros(len(controls), 3, size, size)
        places = (controls[..., :2] * size).long().clamp(0, size - 1)
        for picture, joints in zip(pictures, places, strict=True):
            picture[:, joints[:, 1], joints[:, 0]] = 1
        return pictures

    def odd_controls(self, controls: Tensor) -> Oddity | None:
        """None for all controls [N, J, 3] or [N, C, h, w]: what can be filmed is not known."""
        return None

    def player(self, first: FirstFrame, script: str = MEDLEY, seed: int = 0) -> Player:
        """A player that holds the control of the first picture; one's own tracker or track takes its place.

        Raises ValueError for another script than "still", and for a first picture without a control.
        """
        read_script(script, self.actions)
        require(first.control is not None, "first", "one of the gallery, or with its control", "one without a control")
        assert first.control is not None
        return StillPlayer(first.control)

    def _part(self) -> list[tuple[Film, int]]:
        """Films and first video frames of the clips of this part."""
        clips = [(film, SPAN * number) for film in self.films for number in range(film.clips)]
        trained = len(clips) - max(1, len(clips) // HELD_OUT)
        return clips[trained:] if self.held_out else clips[:trained]


class StillPlayer:
    """Repeats one control [J, 3] or [C, h, w]."""

    def __init__(self, control: Tensor) -> None:
        self._control = torch.as_tensor(control)

    def play(self, action: str) -> None:
        """Raises ValueError for another action than "still", the only one."""
        read_script(action, (STILL,))

    def next(self, frames: int) -> Tensor:
        """Controls [frames, ...]: the same for each video frame."""
        return self._control.expand(frames, *self._control.shape).clone()

    def truth(self, size: int) -> Tensor | None:
        """None: nobody has filmed it."""
        return None
