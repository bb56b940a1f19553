# SPDX-License-Identifier: Apache-2.0
"""Pictures of camera motions for people."""

from __future__ import annotations

import torch
from torch import Tensor

from aapt_fast.worlds.rooms.camera import Camera, read_maps, turn_angles
from aapt_fast.worlds.rooms.walker import FASTEST
from aapt_fast.worlds.world import FPS


def draw_motions(maps: Tensor, size: int, camera: Camera) -> Tensor:
    """Dials [N, 3, size, size] in 0..1 of control maps [N, 6, h, w].

    A yellow disc leaves the middle to where the camera turns, and is larger the faster it goes forwards, smaller than
    the ring when it goes back; the blue bars show steps to the side and upwards.
    """
    moved, turned = read_maps(maps, camera)
    speed = (torch.cat([moved, turn_angles(turned)], dim=1) * FPS).cpu() / torch.tensor(
        FASTEST[[0, 1, 2, 4, 3, 5]]
    ).float()
    right, up, forwards, yaw, pitch, _ = (each[:, None, None] for each in speed.clamp(-1, 1).unbind(1))
    place = (torch.arange(size) + 0.5) / size * 2 - 1
    x, y = place[None, None, :], -place[None, :, None]
    edge = size / 2

    def cover(distance: Tensor) -> Tensor:
        return (0.5 - distance * edge).clamp(0, 1)

    ring = cover((torch.hypot(x, y) - 0.2).abs() - 0.01).expand(len(maps), -1, -1)
    disc = cover(torch.hypot(x - 0.7 * yaw, y - 0.7 * pitch) - 0.2 * (1 + 0.6 * forwards))
    aside = cover(torch.maximum((x - 0.35 * right).abs() - 0.35 * right.abs(), (y + 0.92).abs() - 0.04))
    above = cover(torch.maximum((y - 0.35 * up).abs() - 0.35 * up.abs(), (x - 0.92).abs() - 0.04))
    image = torch.full((len(maps), 3, size, size), 0.1)
    for shape, colour in (
        (ring, (0.6, 0.6, 0.6)),
        (disc, (1.0, 0.85, 0.2)),
        (aside, (0.3, 0.6, 1.0)),
        (above, (0.3, 0.6, 1.0)),
    ):
        image = image.lerp(torch.tensor(colour)[None, :, None, None].expand_as(image), shape[:, None].expand_as(image))
    return image.to(maps.device)
