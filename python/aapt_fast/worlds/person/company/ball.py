# SPDX-License-Identifier: Apache-2.0
"""A ball that bounces across the floor; every bounce sends it somewhere else."""

from __future__ import annotations

import torch

from aapt_fast.worlds.chance import Chance
from aapt_fast.worlds.person.capsules import Capsules, Shadow
from aapt_fast.worlds.person.identity import hsv
from aapt_fast.worlds.person.skeleton import CAMERA
from aapt_fast.worlds.world import FPS

RADIUS = 0.11
_GRAVITY = 9.81
_LANES = ((-1.7, -0.55), (0.2, 0.42))  # metres towards the camera: behind the person's feet, before them


def ball(chance: Chance, frames: int) -> Capsules:
    """The ball in `frames` video frames: one capsule without length, and its shadow."""
    lane, x, z, right, nearer, fall, hue = chance.once("ball", 7)
    back, front = _LANES[lane < 0.5]
    x, z = 2 * x - 1, back + (front - back) * z
    y, across, along, up = RADIUS + 0.4 * fall, 2.4 * right - 1.2, nearer - 0.5, 0.0
    places = []
    for bounce in chance.each_frame("ball", frames, 3).tolist():
        places.append((x, y, z))
        x, y, z = x + across / FPS, y + up / FPS, z + along / FPS
        up -= _GRAVITY / FPS
        if y < RADIUS:
            y, up = 2 * RADIUS - y, 1.2 + 1.7 * bounce[0]
            across = max(-1.5, min(1.5, across + 2.4 * (bounce[1] - 0.5)))
            along = max(-0.6, min(0.6, along + 1.0 * (bounce[2] - 0.5)))
        edge = 0.55 * (CAMERA.distance - z) / CAMERA.focal  # a little outside the picture
        across = -abs(across) if x > edge else abs(across) if x < -edge else across
        along = -abs(along) if z > front else abs(along) if z < back else along
    centre = torch.tensor(places)[:, None]
    ground = centre[:, 0] * torch.tensor([1.0, 0.0, 1.0])
    return Capsules(
        start=centre,
        end=centre,
        radii=torch.full((1, 2), RADIUS),
        colours=hsv(hue, 0.85, 0.95)[None],
        nearer=torch.zeros(1),
        striped=torch.zeros(1, dtype=torch.bool),
        shadow=Shadow(ground, centre[:, 0, 1] - RADIUS, width=0.42),
    )
