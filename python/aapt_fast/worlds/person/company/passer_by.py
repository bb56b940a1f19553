# SPDX-License-Identifier: Apache-2.0
"""A passer-by: a second person walks through the room, stops, does something, turns round and leaves, by chance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from aapt_fast.worlds.chance import Chance
from aapt_fast.worlds.person.capsules import Capsules
from aapt_fast.worlds.person.identity import make_identity
from aapt_fast.worlds.person.players import random_motion
from aapt_fast.worlds.person.renderer import body
from aapt_fast.worlds.person.skeleton import ANGLE, CAMERA, SHIN, THIGH, forward_kinematics
from aapt_fast.worlds.world import FPS

STRIDE_LENGTH = 4 * (THIGH + SHIN)  # metres per cycle and sine of the legs' reach
_STRANGER = 2_000_000_000  # identities of passers-by are in no gallery
_SIDEWAYS = 1.3  # radians from the camera that he faces when he walks
_WAYS = (-1, -1, -1, 0, 0, 1, 1, 1)  # to the left, nowhere, to the right


def passer_by(chance: Chance, frames: int) -> Capsules:
    """The body of the passer-by in `frames` video frames."""
    who, side, depth, place, way, size = chance.once("passer-by", 6)
    towards = -0.7 - 1.6 * depth if side < 0.8 else 0.45  # mostly behind the other, sometimes before
    away = CAMERA.distance - towards
    edge = 0.5 * away / CAMERA.focal + 0.6  # nothing of him is seen beyond
    reach = 0.35 + 0.2 * size
    pace = STRIDE_LENGTH * math.sin(reach) * (0.7 + 0.2 * size)  # metres per second: 0.8 to 1.6
    place, speed = _wander(chance, frames, 1.2 * edge * (2 * place - 1), _WAYS[int(way * len(_WAYS))], edge, pace)
    share = (speed / pace).clamp(-1, 1)
    phase = 2 * math.pi * speed.abs().cumsum(0) / FPS / (STRIDE_LENGTH * math.sin(reach))
    steps = stride(phase, reach)
    gestures = _gestures(chance, frames)
    angles = gestures + share.abs()[:, None] * (steps - gestures)
    angles[:, ANGLE["heading"]] = (1 - share.abs()) * gestures[:, ANGLE["heading"]] + share * _SIDEWAYS
    angles[:, ANGLE["shift"]] = place
    joints = forward_kinematics(angles) + torch.tensor([0.0, 0.0, towards])
    return body(joints, make_identity(_STRANGER + int(who * 2**20)), scale=CAMERA.distance / away)


def stride(phase: Tensor, reach: float) -> Tensor:
    """Pose angles [T, 17] of a walk at `phase` [T] radians of its cycle, legs swinging up to `reach` radians.

    A leg is straight while it goes back and bent while it goes forward, so that feet hardly slide under a body that
    moves `STRIDE_LENGTH` times the sine of `reach` in a cycle.
    """
    angles = torch.zeros(len(phase), len(ANGLE))
    for side, sign in (("left", 1.0), ("right", -1.0)):
        swing, forwards = sign * reach * phase.sin(), (sign * phase.cos()).clamp_min(0)
        angles[:, ANGLE[f"{side}_leg_swing"]] = swing
        angles[:, ANGLE[f"{side}_knee"]] = 0.08 + 2.0 * reach * forwards
        angles[:, ANGLE[f"{side}_arm_swing"]] = -0.8 * swing
        angles[:, ANGLE[f"{side}_arm_raise"]] = 0.15
        angles[:, ANGLE[f"{side}_elbow"]] = 0.5
    angles[:, ANGLE["bow"]] = 0.06
    return angles


def _gestures(chance: Chance, frames: int) -> Tensor:
    """Pose angles [frames, 17] of the gestures while he stands."""
    angles = torch.empty(0, len(ANGLE))
    for seed, length in chance.seeds("gestures", frames):
        angles = torch.cat([angles, random_motion(length, seed, start=angles[-1] if len(angles) else None)])
    return angles


def _wander(chance: Chance, frames: int, place: float, way: int, edge: float, pace: float) -> tuple[Tensor, Tensor]:
    """Places in metres to the right and speeds in metres per second, both [frames]."""
    if abs(place) > edge:
        way = -1 if place > 0 else 1  # comes in
    speed = way * pace
    places, speeds = [], []
    for change, choice in chance.each_frame("way", frames, 2).tolist():
        places.append(place)
        speeds.append(speed)
        if place * way > edge:  # gone: waits outside
            way = 0
        if change < 1 / 30:
            way = _WAYS[int(choice * len(_WAYS))]
            if abs(place) > edge:
                way = -1 if place > 0 else 1
        speed += 0.2 * (way * pace - speed)
        place += speed / FPS
    return torch.tensor(places), torch.tensor(speeds)
