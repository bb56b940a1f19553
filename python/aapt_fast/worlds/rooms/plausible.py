# SPDX-License-Identifier: Apache-2.0
"""Control maps from elsewhere that no camera of this world can have: no camera at all, or one that is too fast."""

from __future__ import annotations

import torch
from torch import Tensor

from aapt_fast.worlds.rooms.camera import DIRECTION_UNIT, ORIGIN_UNIT, Camera, read_maps, turn_angles
from aapt_fast.worlds.rooms.walker import FASTEST
from aapt_fast.worlds.world import FPS, Oddity

TOO_FAST = 2.0  # times the top speed of a walker
TOLERANCE = 0.25  # of a unit, by which the rays of a map may miss those of one camera


def odd_maps(maps: Tensor, camera: Camera) -> Oddity | None:
    """The fault of control maps [N, 6, h, w] of impossible cameras; None if all are possible."""
    moved, turned = read_maps(maps, camera)
    still = camera.rays(maps.shape[-1])
    origins = moved[:, :, None, None] / ORIGIN_UNIT - maps[:, :3]
    directions = (torch.einsum("nij,jhw->nihw", turned, still) - still) / DIRECTION_UNIT - maps[:, 3:]
    missed = torch.stack([origins.abs().amax((1, 2, 3)), directions.abs().amax((1, 2, 3))], dim=1).amax(1)
    if (missed > TOLERANCE).any():
        many = int((missed > TOLERANCE).sum())
        worst = f"the worst ray misses by {float(missed.max()):.2g} units in video frame {int(missed.argmax())}"
        return Oddity("no camera", f"{many} of {len(maps)} control maps are not the rays of one camera: {worst}")
    speed, turning = moved.norm(dim=1) * FPS, turn_angles(turned).abs().amax(1) * FPS
    fastest, most = float(FASTEST[:3].max()) * TOO_FAST, float(FASTEST[3:].max()) * TOO_FAST
    if (speed > fastest).any() or (turning > most).any():
        got = f"{float(speed.max()):.2g} m/s and {float(turning.max()):.2g} rad/s"
        return Oddity("fast", f"a camera of this world is slower than {fastest:.2g} m/s and {most:.2g} rad/s: {got}")
    return None
