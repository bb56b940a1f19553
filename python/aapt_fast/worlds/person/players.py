# SPDX-License-Identifier: Apache-2.0
"""Players: pose angles of motions that follow each other, cross-faded, as a stream needs them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from aapt_fast.errors import require, require_integer
from aapt_fast.limits import require_memory
from aapt_fast.not_copied import NotCopied
from aapt_fast.worlds.person.identity import make_identity
from aapt_fast.worlds.person.motions import MOTIONS, Dice, drift, make_motion
from aapt_fast.worlds.person.renderer import draw_room, render
from aapt_fast.worlds.person.skeleton import ANGLE, ANGLES, forward_kinematics, pose_points
from aapt_fast.worlds.world import FPS, MEDLEY, PART_FRAMES, FirstFrame, Part

FADE = 8  # video frames of a cross-fade between two motions
FRAME_BYTES = 2048  # of memory for a video frame of a long motion while its poses are computed, measured and rounded up
MANY_FRAMES = 10_000  # in one call, above which it is worth the time to ask the system for its memory
FIRST_STEP = 4  # video frames in which a person stays as in the first picture, so that the model takes all of it over

Pose: TypeAlias = Sequence[float] | np.ndarray | Tensor
"""17 angles, as `ANGLES` names them."""

NO_COPY = (
    "player: it cannot be copied or pickled, as its motions come one after the other; another one made with the same "
    "arguments plays the same"
)


class MotionPlayer(NotCopied):
    """Plays one motion at a time and cross-fades to the next one that `play` names: the source of live pose control.

    During a fade, `play` fades on from the mixture of that moment, so the body never jumps. `start` [17] is the pose to
    fade from at the beginning, for example that of the first image; the body stays in it for `hold` video frames
    before. A model sees the first image at its first step only: a body that holds still in that step carries the whole
    picture over, a body that moves far takes a blur of it along.

    Raises ValueError for an unknown name and for a `start` that is not 17 finite numbers.
    """

    no_copy = NO_COPY
    action: str
    """The motion that plays now, or fades in."""
    frames: int
    """Video frames so far."""

    def __init__(self, name: str, seed: int = 0, start: Pose | None = None, hold: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self.action, self.frames = name, 0
        self._layers = [(-FADE, make_motion(name, self._generator))]  # (begun at, motion); each covers the last
        self._drift = drift(Dice(self._generator))
        self._start, self._hold = None if start is None else read_pose(start, "start"), hold

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.action}, {self.frames} video frames so far)"

    def play(self, name: str) -> None:
        """Fade to another motion over the next `FADE` video frames."""
        motion = make_motion(name, self._generator)
        if self._layers[-1][0] == self.frames:  # never shown
            self._layers.pop()
        self._layers.append((self.frames, motion))
        self.action = name

    def next(self, frames: int) -> Tensor:
        """Pose angles [frames, 17] of the next video frames, at 24 per second. Raises ValueError for fewer than 0."""
        require(frames >= 0, "frames", "0 or more", frames)
        index = torch.arange(self.frames, self.frames + frames)
        self.frames += frames
        t = index / FPS
        angles = self._layers[0][1](t)
        for begun, motion in self._layers[1:]:
            angles = _blend(angles, motion(t), (index - begun + 1) / FADE)
        covered = max(number for number, (begun, _) in enumerate(self._layers) if self.frames - begun + 1 >= FADE)
        self._layers = self._layers[covered:]
        angles[:, ANGLE["shift"]] = self._drift(t)
        if self._start is not None:
            angles = _blend(self._start.expand_as(angles), angles, (index + 1 - self._hold) / FADE)
        return angles


def read_pose(pose: Pose, argument: str) -> Tensor:
    """A pose of 17 angles as float32 [17] on the CPU; raises ValueError, naming `argument`, if it is none."""
    try:
        values = pose.detach().cpu() if isinstance(pose, Tensor) else torch.from_numpy(np.array(pose))
    except (TypeError, ValueError):  # ragged, or no numbers
        values = None
    expected = f"{len(ANGLES)} numbers, as skeleton.ANGLES names them"
    require(values is not None, argument, expected, type(pose).__name__)
    fits = values.shape == (len(ANGLES),) and not values.is_complex() and values.dtype != torch.bool
    require(fits, argument, expected, f"{values.dtype} of shape {list(values.shape)}")
    values = values.float()
    require(bool(values.isfinite().all()), argument, "finite numbers", "nan or inf")
    return values


def _blend(before: Tensor, after: Tensor, share: Tensor) -> Tensor:
    """A smooth cross-fade of poses [T, 17]; `share` [T] of `after` is clamped to 0..1 and eased."""
    share = share.clamp(0, 1)[:, None]
    share = share * share * (3 - 2 * share)
    return after * share + before * (1 - share)


class _SequencePlayer(NotCopied):
    """Plays motions one after the other, each faded in: `parts` are their names and lengths in video frames."""

    no_copy = NO_COPY

    def __init__(self, parts: Iterator[tuple[str, float]], seed: int, start: Pose | None, hold: int) -> None:
        self._parts = parts
        name, self._left = next(parts)
        self._player = MotionPlayer(name, seed, start, hold)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.action}, {self.frames} video frames so far)"

    @property
    def action(self) -> str:
        """The motion that plays now, or fades in."""
        return self._player.action

    @property
    def frames(self) -> int:
        """Video frames so far."""
        return self._player.frames

    def play(self, name: str) -> None:
        """Leave the parts for one motion without end. Raises ValueError for an unknown name."""
        self._player.play(name)
        self._left = math.inf

    def next(self, frames: int) -> Tensor:
        """Pose angles [frames, 17] of the next video frames, at 24 per second."""
        angles = []
        while frames > self._left:
            part = int(self._left)
            angles.append(self._player.next(part))
            frames -= part
            name, self._left = next(self._parts)
            self._player.play(name)
        self._left -= frames
        return torch.cat([*angles, self._player.next(frames)])


class MedleyPlayer(_SequencePlayer):
    """Plays another motion every one to three seconds. Arguments as in `MotionPlayer`."""

    def __init__(self, seed: int = 0, start: Pose | None = None, hold: int = 0) -> None:
        generator, names = torch.Generator().manual_seed(seed), list(MOTIONS)

        def below(high: int, low: int = 0) -> int:
            return int(torch.randint(low, high, (1,), generator=generator))

        def parts(name: str) -> Iterator[tuple[str, float]]:
            while True:
                yield name, below(73, low=24)
                name = names[below(len(names))]

        first = names[below(len(names))]
        super().__init__(parts(first), seed=below(2**31), start=start, hold=hold)


class ScriptPlayer(_SequencePlayer):
    """Plays the parts of a script; the last goes on for ever. The other arguments as in `MotionPlayer`."""

    def __init__(self, script: Sequence[Part], seed: int = 0, start: Pose | None = None, hold: int = 0) -> None:
        lengths = [float(part.frames or PART_FRAMES) for part in script[:-1]] + [math.inf]
        super().__init__(zip((part.action for part in script), lengths, strict=True), seed, start, hold)


def random_motion(frames: int, seed: int, start: Pose | None = None) -> Tensor:
    """Pose angles [frames, 17] of a medley. `start` [17] as in `MotionPlayer`."""
    return MedleyPlayer(seed, start).next(frames)


class PersonPlayer(NotCopied):
    """Live poses for a stream that starts from the picture `first`; see `worlds.world.Player`."""

    no_copy = NO_COPY

    def __init__(self, script: Sequence[Part], seed: int, first: FirstFrame) -> None:
        pose = None if first.pose is None else read_pose(first.pose, "first.pose")
        medley = script[0].action == MEDLEY
        self._player: MedleyPlayer | ScriptPlayer
        self._player = MedleyPlayer(seed, pose, FIRST_STEP) if medley else ScriptPlayer(script, seed, pose, FIRST_STEP)
        self._identity = None if first.scene is None else make_identity(first.scene)
        self._angles = torch.zeros(0, len(ANGLES))
        self._room: Tensor | None = None  # drawn once

    def __repr__(self) -> str:
        now = f"{self._player.action} now, {self._player.frames} video frames so far"
        return f"PersonPlayer(world person: {now})"

    def play(self, action: str) -> None:
        """Fade to another motion from the next video frame on; it has no end. Raises ValueError for an unknown name."""
        self._player.play(action)

    def next(self, frames: int) -> Tensor:
        """Image points [frames, 19, 3] of the next video frames.

        Raises TypeError for a number that is no integer, ValueError for fewer than 0 and for more than fit into memory.
        """
        require_integer("frames", frames)
        if frames > MANY_FRAMES:
            require_memory("frames", FRAME_BYTES * int(frames))
        self._angles = self._player.next(frames)
        return pose_points(self._angles)

    def truth(self, size: int) -> Tensor | None:
        """True video [frames, 3, size, size] in 0..1 of the last `next`; None if the person is not known."""
        if self._identity is None:
            return None
        self._room = draw_room(self._identity, size) if self._room is None else self._room
        return render(forward_kinematics(self._angles), self._identity, size, room=self._room)
