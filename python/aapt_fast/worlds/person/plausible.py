# SPDX-License-Identifier: Apache-2.0
"""Poses from elsewhere that no body of this world can have: bones too long, a body too small or out of the picture."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from aapt_fast.worlds.person.skeleton import ANGLES, CAMERA, JOINTS, LIMBS, forward_kinematics
from aapt_fast.worlds.world import Oddity

LONGEST, SMALLEST = 1.5, 0.5
"""Lengths of bones and of a whole body, as multiples of this world's. A tracker of a small person, or one that knows no
depth, gives shorter bones; nothing gives longer ones."""

_STARTS, _ENDS = torch.tensor(LIMBS, device="cpu").T  # made once: sessions look at every control


def odd_poses(points: Tensor) -> Oddity | None:
    """The fault of image points [N, 19, 3] of impossible bodies, with the worst bone; None if all are possible."""
    lengths, normal = bone_lengths(CAMERA.unproject(points)), _normal_lengths()
    ratios = lengths / normal
    long = ratios.amax(1) > LONGEST
    if long.any():
        frame, limb = divmod(int(ratios.argmax()), len(LIMBS))
        names = " to ".join(JOINTS[joint] for joint in LIMBS[limb])
        length, usual = float(lengths[frame, limb]), float(normal[0, limb])
        worst = f"{length:.2g} m from {names} in video frame {frame}, where it has {usual:.2g} m"
        many = f"{int(long.sum())} of {len(points)} poses have longer bones than a body of this world"
        return Oddity("long", f"{many}: {worst}")
    outside = ((points[..., :2] < 0) | (points[..., :2] > 1)).any(-1).all(1)
    if outside.any():
        return Oddity("outside", f"{int(outside.sum())} of {len(points)} poses lie wholly outside of the picture")
    small = lengths.sum(1) < SMALLEST * normal.sum()
    if small.any():
        many = f"{int(small.sum())} of {len(points)} poses"
        return Oddity("small", f"{many} are of a body less than half as large as those of this world")
    return None


@functools.cache
def _normal_lengths() -> Tensor:
    """Lengths [1, 15] in metres of the limbs of this world's body."""
    with torch.inference_mode(False):  # a session asks first, but not only sessions ask
        return bone_lengths(forward_kinematics(torch.zeros(1, len(ANGLES), dtype=torch.float32, device="cpu")))


def bone_lengths(joints: Tensor) -> Tensor:
    """Lengths [N, 15] in metres of the limbs of joints [N, 19, 3]."""
    return (joints[:, _ENDS] - joints[:, _STARTS]).norm(dim=-1)
