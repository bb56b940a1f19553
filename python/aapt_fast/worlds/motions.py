# SPDX-License-Identifier: Apache-2.0
"""The vocabulary of motions, each a function from seconds to pose angles, and the player that cross-fades them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from aapt_fast.errors import require
from aapt_fast.worlds.skeleton import ANGLE, ANGLES

FPS = 24.0
FADE = 8  # video frames of a cross-fade between two motions

Pose: TypeAlias = Sequence[float] | np.ndarray | Tensor
"""17 angles, as `ANGLES` names them."""

Motion = Callable[[Tensor], Tensor]
"""Seconds [T] -> pose angles [T, 17]; also waves and drifts, seconds [T] -> [T]."""


class _Dice:
    """Random draws and waves of one motion instance; every draw comes from the caller's generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator
        self._phase = self.between(0.0, 2 * math.pi)

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand(1, generator=self._generator))

    def side(self) -> str:
        return "left" if self.between(0, 1) < 0.5 else "right"

    def sign(self) -> float:
        return 1.0 if self.between(0, 1) < 0.5 else -1.0

    def wave(self, hertz: float, phase: float = 0.0) -> Motion:
        return lambda t: torch.sin(2 * math.pi * hertz * t + self._phase + phase)


def _pose(t: Tensor, **angles: Tensor | float) -> Tensor:
    """Relaxed standing with the named angles replaced; `arms_*`, `legs_*`, `elbows`, `knees` set both sides."""
    pose = torch.zeros(len(t), len(ANGLES))
    defaults: dict[str, Tensor | float] = dict(bow=0.04, arms_raise=0.15, elbows=0.25)
    for name, value in {**defaults, **angles}.items():
        singular = name
        for part in ("arm", "leg", "elbow", "knee"):
            singular = singular.replace(f"{part}s", part)
        names = [name] if name in ANGLE else [f"left_{singular}", f"right_{singular}"]
        for each in names:
            pose[:, ANGLE[each]] = value
    return pose


def _idle(dice: _Dice) -> Motion:
    heading, breath, sway = dice.between(-0.9, 0.9), dice.wave(0.4), dice.wave(0.2)
    return lambda t: _pose(
        t, bow=0.04 + 0.03 * breath(t), arms_raise=0.17 + 0.05 * breath(t), heading=heading + 0.15 * sway(t)
    )


def _walk(dice: _Dice) -> Motion:
    hertz, reach = dice.between(0.8, 1.3), dice.between(0.4, 0.65)
    heading = dice.sign() * dice.between(0.5, 1.2)
    stride, left_lift, right_lift = dice.wave(hertz), dice.wave(hertz, -1.2), dice.wave(hertz, math.pi - 1.2)
    return lambda t: _pose(
        t,
        left_leg_swing=reach * stride(t),
        right_leg_swing=-reach * stride(t),
        left_knee=0.15 + 0.7 * reach * (1 + left_lift(t)),
        right_knee=0.15 + 0.7 * reach * (1 + right_lift(t)),
        left_arm_swing=-0.9 * reach * stride(t),
        right_arm_swing=0.9 * reach * stride(t),
        elbows=0.5,
        heading=heading,
    )


def _wave(dice: _Dice) -> Motion:
    hertz, side, height = dice.between(0.8, 1.5), dice.side(), dice.between(1.6, 2.3)
    heading = dice.between(-0.9, 0.9)
    swing, bend, sway = dice.wave(hertz), dice.wave(hertz, 1.0), dice.wave(hertz / 2)
    return lambda t: _pose(
        t,
        **{f"{side}_arm_raise": height + 0.15 * swing(t), f"{side}_elbow": 0.7 + 0.6 * bend(t)},
        tilt=0.05 * sway(t),
        heading=heading,
    )


def _jump(dice: _Dice) -> Motion:
    """Jumping jack."""
    heading, wave = dice.between(-0.4, 0.4), dice.wave(dice.between(0.7, 1.2))

    def motion(t: Tensor) -> Tensor:
        open_ = 0.5 + 0.5 * wave(t)
        return _pose(
            t,
            arms_raise=0.2 + 2.5 * open_,
            elbows=0.1,
            legs_raise=0.02 + 0.38 * open_,
            lift=0.10 * (1 - (2 * open_ - 1) ** 2),
            heading=heading,
        )

    return motion


def _squat(dice: _Dice) -> Motion:
    heading, wave = dice.between(-0.9, 0.9), dice.wave(dice.between(0.4, 0.8))

    def motion(t: Tensor) -> Tensor:
        down = 0.5 + 0.5 * wave(t)
        return _pose(
            t,
            legs_swing=1.25 * down,
            knees=2.1 * down,
            bow=0.05 + 0.45 * down,
            arms_swing=1.5 * down,
            elbows=0.1,
            heading=heading,
        )

    return motion


def _kick(dice: _Dice) -> Motion:
    wave, heading = dice.wave(dice.between(0.5, 0.9)), dice.sign() * dice.between(0.3, 1.1)

    def motion(t: Tensor) -> Tensor:
        left, right = wave(t).clamp(0, 1), (-wave(t)).clamp(0, 1)
        return _pose(
            t,
            left_leg_swing=1.3 * left,
            right_leg_swing=1.3 * right,
            left_knee=1.4 * left * (1 - left),
            right_knee=1.4 * right * (1 - right),
            left_arm_swing=0.9 * right - 0.5 * left,
            right_arm_swing=0.9 * left - 0.5 * right,
            arms_raise=0.35,
            heading=heading,
        )

    return motion


def _dance(dice: _Dice) -> Motion:
    hertz, between = dice.between(0.6, 1.1), dice.between
    heading, beat, bounce, turn = between(-0.5, 0.5), dice.wave(hertz), dice.wave(2 * hertz), dice.wave(hertz / 2)
    arms: dict[str, tuple[float, float, Motion]] = {}
    for side in ("left", "right"):
        arms[f"{side}_arm_swing"] = (between(-0.2, 0.8), between(0.2, 0.6), dice.wave(hertz, between(0, 6)))
        raising = dice.wave(hertz * between(0.7, 1.4), between(0, 6))
        arms[f"{side}_arm_raise"] = (between(0.4, 1.6), between(0.2, 0.7), raising)
        arms[f"{side}_elbow"] = (between(0.6, 1.4), between(0.3, 0.7), dice.wave(1.3 * hertz, between(0, 6)))

    def motion(t: Tensor) -> Tensor:
        down = 0.5 + 0.5 * bounce(t)
        return _pose(
            t,
            **{name: rest + reach * wave(t) for name, (rest, reach, wave) in arms.items()},
            tilt=0.18 * beat(t),
            legs_swing=0.3 * down,
            knees=0.6 * down,
            legs_raise=0.12,
            heading=heading + 0.4 * turn(t),
        )

    return motion


def _bow(dice: _Dice) -> Motion:
    heading, wave = dice.between(-1.1, 1.1), dice.wave(dice.between(0.3, 0.5))

    def motion(t: Tensor) -> Tensor:
        down = 0.5 + 0.5 * wave(t)
        return _pose(t, bow=0.95 * down, arms_swing=0.3 * down, legs_swing=-0.15 * down, heading=heading)

    return motion


MOTIONS: dict[str, Callable[[_Dice], Motion]] = {
    "idle": _idle,
    "walk": _walk,
    "wave": _wave,
    "jump": _jump,
    "squat": _squat,
    "kick": _kick,
    "dance": _dance,
    "bow": _bow,
}


def make_motion(name: str, generator: torch.Generator) -> Motion:
    """One instance of a named motion, its tempo, size and heading drawn from `generator`.

    Raises ValueError for an unknown name.
    """
    require(name in MOTIONS, "motion", f"{' | '.join(MOTIONS)} (a medley of them is MedleyPlayer's)", name)
    return MOTIONS[name](_Dice(generator))


class MotionPlayer:
    """Plays one motion at a time and cross-fades to the next when asked: the source of live pose control.

    Asked during a fade, it fades on from the mixture that it shows just then, so the body never jumps.
    `start`, any sequence of 17 angles, is the pose to fade from at the beginning, for example that of the first image;
    the body stays in it for `hold` video frames before. A model sees the first image at its first step only: held
    still in that one, it carries the whole picture over, where a body that moves far takes a blur of it along.

    Raises ValueError for an unknown name and for a `start` that is not 17 finite numbers.
    """

    def __init__(self, name: str, seed: int = 0, start: Pose | None = None, hold: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._frame = 0
        self._layers = [(-FADE, make_motion(name, self._generator))]  # (begun at, motion); each covers the last
        self._drift = _drift(_Dice(self._generator))
        self._start, self._hold = None if start is None else _angles(start), hold

    def play(self, name: str) -> None:
        """Fade to another motion over the next `FADE` video frames."""
        motion = make_motion(name, self._generator)
        if self._layers[-1][0] == self._frame:  # never shown
            self._layers.pop()
        self._layers.append((self._frame, motion))

    def next(self, frames: int) -> Tensor:
        """Pose angles [frames, 17] of the next video frames, at 24 per second. Raises ValueError for fewer than 0."""
        require(frames >= 0, "frames", "0 or more", frames)
        index = torch.arange(self._frame, self._frame + frames)
        self._frame += frames
        t = index / FPS
        angles = self._layers[0][1](t)
        for begun, motion in self._layers[1:]:
            angles = _blend(angles, motion(t), (index - begun + 1) / FADE)
        covered = max(number for number, (begun, _) in enumerate(self._layers) if self._frame - begun + 1 >= FADE)
        self._layers = self._layers[covered:]
        angles[:, ANGLE["shift"]] = self._drift(t)
        if self._start is not None:
            angles = _blend(self._start.expand_as(angles), angles, (index + 1 - self._hold) / FADE)
        return angles


def _angles(start: Pose) -> Tensor:
    """A pose as float32 [17] on the CPU; raises ValueError if it is none."""
    try:
        values = start.detach().cpu() if isinstance(start, Tensor) else torch.from_numpy(np.array(start))
    except (TypeError, ValueError):  # ragged, or no numbers
        values = None
    expected = f"{len(ANGLES)} numbers, as skeleton.ANGLES names them"
    require(values is not None, "start", expected, type(start).__name__)
    fits = values.shape == (len(ANGLES),) and not values.is_complex() and values.dtype != torch.bool
    require(fits, "start", expected, f"{values.dtype} of shape {list(values.shape)}")
    values = values.float()
    require(bool(values.isfinite().all()), "start", "finite numbers", "nan or inf")
    return values


def _drift(dice: _Dice) -> Motion:
    """A slow wandering to the left and right, in metres."""
    slow, slower = dice.wave(dice.between(0.1, 0.35)), dice.wave(dice.between(0.1, 0.35), dice.between(0, 6))
    centre = dice.between(-0.15, 0.15)
    return lambda t: centre + 0.22 * slow(t) + 0.12 * slower(t)


def _blend(before: Tensor, after: Tensor, share: Tensor) -> Tensor:
    """A smooth cross-fade of poses [T, 17]; `share` [T] of `after` is clamped to 0..1 and eased."""
    share = share.clamp(0, 1)[:, None]
    share = share * share * (3 - 2 * share)
    return after * share + before * (1 - share)


class MedleyPlayer:
    """Plays another motion every one to three seconds, faded in. Arguments and `next` as in `MotionPlayer`."""

    def __init__(self, seed: int = 0, start: Pose | None = None, hold: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        name = self._pick()
        self._player = MotionPlayer(name, int(torch.randint(2**31, (1,), generator=self._generator)), start, hold)
        self._left = self._length()  # video frames of the motion that plays

    def next(self, frames: int) -> Tensor:
        """Pose angles [frames, 17] of the next video frames, at 24 per second."""
        angles = []
        while frames > self._left:
            angles.append(self._player.next(self._left))
            frames -= self._left
            self._player.play(self._pick())
            self._left = self._length()
        angles.append(self._player.next(frames))
        self._left -= frames
        return torch.cat(angles)

    def _pick(self) -> str:
        names = list(MOTIONS)
        return names[int(torch.randint(len(names), (1,), generator=self._generator))]

    def _length(self) -> int:
        return int(torch.randint(24, 73, (1,), generator=self._generator))


def random_motion(frames: int, seed: int, start: Pose | None = None, hold: int = 0) -> Tensor:
    """Pose angles [frames, 17] of a medley: another motion every one to three seconds, faded in.

    `start` and `hold` as in `MotionPlayer`.
    """
    return MedleyPlayer(seed, start, hold).next(frames)
