# SPDX-License-Identifier: Apache-2.0
"""The vocabulary of motions: functions from seconds to pose angles, their tempo and size drawn at random."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from aapt_fast.errors import require, require_type
from aapt_fast.worlds.person.skeleton import ANGLE, ANGLES

Motion = Callable[[Tensor], Tensor]
"""Seconds [T] -> pose angles [T, 17]; also waves and drifts, seconds [T] -> [T]."""


class Dice:
    """Random draws and waves of one motion instance, all from the caller's generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator
        self._phase = self.between(0.0, 2 * math.pi)

    def between(self, low: float, high: float) -> float:
        """A number between two others."""
        return low + (high - low) * float(torch.rand(1, generator=self._generator))

    def side(self) -> str:
        """Left or right."""
        return "left" if self.between(0, 1) < 0.5 else "right"

    def sign(self) -> float:
        """1 or -1."""
        return 1.0 if self.between(0, 1) < 0.5 else -1.0

    def wave(self, hertz: float, phase: float = 0.0) -> Motion:
        """A sine [T] of seconds [T], at a phase in radians from that of the instance."""
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


def _idle(dice: Dice) -> Motion:
    heading, breath, sway = dice.between(-0.9, 0.9), dice.wave(0.4), dice.wave(0.2)
    return lambda t: _pose(
        t, bow=0.04 + 0.03 * breath(t), arms_raise=0.17 + 0.05 * breath(t), heading=heading + 0.15 * sway(t)
    )


def _walk(dice: Dice) -> Motion:
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


def _wave(dice: Dice) -> Motion:
    hertz, side, height = dice.between(0.8, 1.5), dice.side(), dice.between(1.6, 2.3)
    heading = dice.between(-0.9, 0.9)
    swing, bend, sway = dice.wave(hertz), dice.wave(hertz, 1.0), dice.wave(hertz / 2)
    return lambda t: _pose(
        t,
        **{f"{side}_arm_raise": height + 0.15 * swing(t), f"{side}_elbow": 0.7 + 0.6 * bend(t)},
        tilt=0.05 * sway(t),
        heading=heading,
    )


def _jump(dice: Dice) -> Motion:
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


def _squat(dice: Dice) -> Motion:
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


def _kick(dice: Dice) -> Motion:
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


def _dance(dice: Dice) -> Motion:
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


def _bow(dice: Dice) -> Motion:
    heading, wave = dice.between(-1.1, 1.1), dice.wave(dice.between(0.3, 0.5))

    def motion(t: Tensor) -> Tensor:
        down = 0.5 + 0.5 * wave(t)
        return _pose(t, bow=0.95 * down, arms_swing=0.3 * down, legs_swing=-0.15 * down, heading=heading)

    return motion


MOTIONS: dict[str, Callable[[Dice], Motion]] = {
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

    Raises TypeError for a name that is no str, ValueError for an unknown one.
    """
    require_type("motion", name, str)
    expected = f'{" | ".join(MOTIONS)} (a medley or a script is for model.world.player(first, "medley"))'
    require(name in MOTIONS, "motion", expected, name)
    return MOTIONS[name](Dice(generator))


def drift(dice: Dice) -> Motion:
    """A slow wandering to the left and right, in metres."""
    slow, slower = dice.wave(dice.between(0.1, 0.35)), dice.wave(dice.between(0.1, 0.35), dice.between(0, 6))
    centre = dice.between(-0.15, 0.15)
    return lambda t: centre + 0.22 * slow(t) + 0.12 * slower(t)
