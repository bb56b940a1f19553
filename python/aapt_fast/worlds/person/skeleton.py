# SPDX-License-Identifier: Apache-2.0
"""The body: pose angles -> joints in metres -> points in the image.

A pose is 17 numbers (`ANGLES`); a body is 19 joints (`JOINTS`), y up, in metres, standing on the plane y = 0; image
points are fractions of the frame, so that one pose drives a model of any resolution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

ANGLES = (
    "bow", "tilt",
    "left_arm_swing", "left_arm_raise", "left_elbow",
    "right_arm_swing", "right_arm_raise", "right_elbow",
    "left_leg_swing", "left_knee", "left_leg_raise",
    "right_leg_swing", "right_knee", "right_leg_raise",
    "lift", "shift", "heading",
)  # fmt: skip
ANGLE = {name: index for index, name in enumerate(ANGLES)}

JOINTS = (
    "pelvis", "chest", "neck", "head",
    "left_shoulder", "left_elbow", "left_hand", "right_shoulder", "right_elbow", "right_hand",
    "left_hip", "left_knee", "left_foot", "right_hip", "right_knee", "right_foot",
    "left_toe", "right_toe", "nose",
)  # fmt: skip
JOINT = {name: index for index, name in enumerate(JOINTS)}

LIMBS = tuple(
    (JOINT[a], JOINT[b])
    for a, b in (
        ("pelvis", "chest"), ("left_shoulder", "right_shoulder"), ("left_hip", "right_hip"),
        ("neck", "head"), ("head", "nose"),
        ("left_shoulder", "left_elbow"), ("left_elbow", "left_hand"),
        ("right_shoulder", "right_elbow"), ("right_elbow", "right_hand"),
        ("left_hip", "left_knee"), ("left_knee", "left_foot"), ("left_foot", "left_toe"),
        ("right_hip", "right_knee"), ("right_knee", "right_foot"), ("right_foot", "right_toe"),
    )
)  # fmt: skip

TORSO, NECK, SKULL = 0.47, 0.13, 0.17
UPPER_ARM, FOREARM, THIGH, SHIN = 0.29, 0.26, 0.43, 0.43
SHOULDER_HALF, HIP_HALF, TOE, NOSE, SOLE = 0.19, 0.10, 0.15, 0.13, 0.06


def forward_kinematics(angles: Tensor) -> Tensor:
    """Joints [N, 19, 3] in metres of the poses `angles` [N, 17] (radians; lift and shift in metres)."""
    pose = {name: angles[:, index] for name, index in ANGLE.items()}
    zero = torch.zeros_like(pose["bow"])
    up = _vector(pose["tilt"].sin(), pose["bow"].cos() * pose["tilt"].cos(), pose["bow"].sin())  # the spine's direction
    joints: dict[str, Tensor] = {"pelvis": _vector(zero, zero, zero)}
    joints["chest"] = joints["pelvis"] + TORSO * up
    joints["neck"] = joints["chest"] + NECK * up
    joints["head"] = joints["neck"] + SKULL * up
    joints["nose"] = joints["head"] + _vector(zero, zero, zero + NOSE)
    for side, sign in (("left", -1.0), ("right", 1.0)):
        joints.update(_arm(pose, joints["chest"], side, sign))
        joints.update(_leg(pose, joints["pelvis"], side, sign))
    body = torch.stack([joints[name] for name in JOINTS], dim=1)
    return _place(body, pose)


def _vector(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return torch.stack([x, y, z], dim=-1)


def _segment(start: Tensor, length: float, swing: Tensor, raised: Tensor) -> Tensor:
    """End of a limb that hangs down at rest, swings forward by `swing` and is raised sideways by `raised`."""
    return start + length * _vector(raised.sin() * swing.cos(), -raised.cos() * swing.cos(), swing.sin())


def _arm(pose: dict[str, Tensor], chest: Tensor, side: str, sign: float) -> dict[str, Tensor]:
    swing, raised, bend = (pose[f"{side}_{part}"] for part in ("arm_swing", "arm_raise", "elbow"))
    tilt, zero = pose["tilt"], torch.zeros_like(swing)
    shoulder = chest + _vector(SHOULDER_HALF * sign * tilt.cos(), 0.02 - SHOULDER_HALF * sign * tilt.sin(), zero)
    elbow = _segment(shoulder, UPPER_ARM, swing, sign * raised)
    sideways = raised.clamp(0, 1.2) / 1.2  # a raised arm bends its elbow sideways, a hanging one forwards
    hand = _segment(elbow, FOREARM, swing + bend * (1 - sideways), sign * (raised + bend * sideways))
    return {f"{side}_shoulder": shoulder, f"{side}_elbow": elbow, f"{side}_hand": hand}


def _leg(pose: dict[str, Tensor], pelvis: Tensor, side: str, sign: float) -> dict[str, Tensor]:
    swing, bend, raised = (pose[f"{side}_{part}"] for part in ("leg_swing", "knee", "leg_raise"))
    zero = torch.zeros_like(swing)
    hip = pelvis + _vector(zero + HIP_HALF * sign, zero - 0.04, zero)
    knee = _segment(hip, THIGH, swing, sign * (0.03 + raised))
    foot = _segment(knee, SHIN, swing - bend, sign * (0.03 + 0.8 * raised))
    toe = foot + _vector(zero, zero - 0.03, zero + TOE)
    return {f"{side}_hip": hip, f"{side}_knee": knee, f"{side}_foot": foot, f"{side}_toe": toe}


def _place(body: Tensor, pose: dict[str, Tensor]) -> Tensor:
    """Stand the lower foot on the floor, then lift, turn to the heading and shift sideways."""
    lowest = torch.minimum(body[:, JOINT["left_foot"], 1], body[:, JOINT["right_foot"], 1])
    height = (SOLE + pose["lift"] - lowest)[:, None]
    cos, sin = pose["heading"].cos()[:, None], pose["heading"].sin()[:, None]
    x, y, z = body.unbind(-1)
    return _vector(x * cos + z * sin + pose["shift"][:, None], y + height, z * cos - x * sin)


def mirror(angles: Tensor) -> Tensor:
    """The poses [..., 17] seen in a mirror: left and right exchanged, turned and shifted the other way."""
    swapped = [name.replace("left", "#").replace("right", "left").replace("#", "right") for name in ANGLES]
    mirrored = angles[..., [ANGLE[name] for name in swapped]].clone()
    for name in ("tilt", "shift", "heading"):
        mirrored[..., ANGLE[name]] *= -1
    return mirrored


@dataclass(frozen=True)
class Camera:
    """A fixed pinhole camera that looks at the stage; lengths in metres, `focal` in frame heights."""

    focal: float = 134 / 96
    height: float = 0.92
    distance: float = 3.2
    horizon: float = 0.52

    def project(self, joints: Tensor) -> Tensor:
        """Points [..., J, 3] of joints [..., J, 3]: x, y as fractions of the frame, depth in metres past the stage."""
        depth = self.distance - joints[..., 2]
        x = 0.5 + self.focal * joints[..., 0] / depth
        y = self.horizon - self.focal * (joints[..., 1] - self.height) / depth
        return torch.stack([x, y, depth - self.distance], dim=-1)

    def unproject(self, points: Tensor) -> Tensor:
        """Joints [..., J, 3] in metres whose points [..., J, 3] are these: the inverse of `project`."""
        depth = self.distance + points[..., 2]
        x = (points[..., 0] - 0.5) * depth / self.focal
        y = self.height - (points[..., 1] - self.horizon) * depth / self.focal
        return torch.stack([x, y, -points[..., 2]], dim=-1)


CAMERA = Camera()


def pose_points(angles: Tensor) -> Tensor:
    """Image points [N, 19, 3] of the poses `angles` [N, 17], as `Camera.project` gives them: a model's controls."""
    return CAMERA.project(forward_kinematics(angles))


def limb_colours() -> Tensor:
    """One RGB colour [15, 3] in 0..1 per limb, around the colour wheel, for drawings of the skeleton."""
    hue = torch.arange(len(LIMBS)) / len(LIMBS)
    phase = hue[:, None] * 2 * math.pi - torch.tensor([0.0, 2.0, 4.0]) * math.pi / 3
    return (0.55 + 0.45 * phase.cos()).clamp(0, 1)


def draw_skeleton(points: Tensor, size: int, thickness: float = 1.6) -> Tensor:
    """Stick figures [N, 3, size, size] in 0..1 on black of the points [N, 19, 3]: for people, not for control."""
    centres = torch.arange(size, device=points.device) + 0.5
    image = torch.zeros(len(points), 3, size, size, device=points.device)
    for (start, end), colour in zip(LIMBS, limb_colours().to(points.device), strict=True):
        a, b = points[:, start, :2] * size, points[:, end, :2] * size
        along = b - a
        dx = centres[None, None, :] - a[:, 0, None, None]
        dy = centres[None, :, None] - a[:, 1, None, None]
        position = (dx * along[:, 0, None, None] + dy * along[:, 1, None, None]) / (
            along.square().sum(1).clamp_min(1e-3)[:, None, None]
        )
        position = position.clamp(0, 1)
        gap = ((dx - position * along[:, 0, None, None]) ** 2 + (dy - position * along[:, 1, None, None]) ** 2).sqrt()
        cover = (thickness - gap).clamp(0, 1)[:, None]
        image = image * (1 - cover) + cover * colour[:, None, None]
    return image
