# SPDX-License-Identifier: Apache-2.0
"""From what a user sends (poses or maps, one entry per video frame) to the control tensor of a step.

A pose becomes limb maps at latent resolution: around each limb a Gaussian weight w, and w times the offset to the
nearest point of the limb, the place along it and its depth. Five smooth channels per limb say where it is to a
fraction of a latent cell, and in front of what, without drawing anything at video resolution.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aapt_fast.errors import require, require_shape, require_type
from aapt_fast.models.config import ControlConfig

SPREAD = 9 / 96  # of the Gaussian around a limb, as a fraction of the frame
OFFSET_UNIT = 6 / 96  # offsets are given in this unit
DEPTH_GAIN = 3.0  # per metre


def limb_maps(points: Tensor, limbs: tuple[tuple[int, int], ...], grid: tuple[int, int]) -> Tensor:
    """Points [..., J, 3] (x, y as fractions of the frame, depth in metres) -> maps [..., 5 L, h, w].

    Channels are ordered by quantity, then limb: weight, w dx, w dy, w along, w depth.
    """
    height, width = grid
    y = (torch.arange(height, device=points.device) + 0.5) / height
    x = (torch.arange(width, device=points.device) + 0.5) / width
    start, end = points[..., [a for a, _ in limbs], :], points[..., [b for _, b in limbs], :]
    along = end - start
    from_x = x - start[..., 0, None]  # [..., L, w]
    from_y = y - start[..., 1, None]  # [..., L, h]
    along_x, along_y = along[..., 0, None, None], along[..., 1, None, None]
    length2 = along[..., :2].square().sum(-1).clamp_min(1e-7)[..., None, None]
    place = (from_x[..., None, :] * along_x + from_y[..., :, None] * along_y) / length2
    place = place.clamp(0, 1)
    dx, dy = from_x[..., None, :] - place * along_x, from_y[..., :, None] - place * along_y
    weight = torch.exp(-(dx.square() + dy.square()) / (2 * SPREAD**2))
    depth = DEPTH_GAIN * (start[..., 2, None, None] + place * along[..., 2, None, None])
    maps = torch.stack([torch.ones_like(place), dx / OFFSET_UNIT, dy / OFFSET_UNIT, place, depth], dim=-4)
    return (maps * weight.unsqueeze(-4)).flatten(-4, -3)


def step_entries(control: object, config: ControlConfig, grid: tuple[int, int]) -> Tensor:
    """One step's control as maps [entries * entry_channels, h, w].

    `control` is a tensor (or array) with one entry per video frame, or a single entry that is held for all of them:
    [entries, J, 3] or [J, 3] for poses, [entries, C, h, w] or [C, h, w] for maps. Raises TypeError for something
    else, ValueError for another shape or a value that is not finite.
    """
    values: Tensor = torch.as_tensor(control) if hasattr(control, "__array__") else control
    require_type("control", values, Tensor)
    entry: tuple[int | str, ...]
    entry = (config.joints, 3) if config.kind == "pose" else (config.channels, *grid)
    if values.ndim == len(entry):
        require_shape("control", values, *entry)
        values = values.expand(config.entries, *values.shape)
    require_shape("control", values, config.entries, *entry)
    require(values.is_floating_point(), "control", "a floating-point tensor", values.dtype)
    values = values.float()
    require(bool(values.isfinite().all()), "control", "finite values", "nan or inf")
    maps = limb_maps(values, config.limbs, grid) if config.kind == "pose" else values
    return maps.flatten(0, 1)


def clip_controls(points: Tensor, config: ControlConfig, grid: tuple[int, int]) -> Tensor:
    """Poses of whole clips, points [B, 1 + 4 n, J, 3] -> controls [B, step_channels, n, h, w] of steps 1..n."""
    require_shape("points", points, "B", "1 + 4 n", config.joints, 3)
    frames = points.shape[1]
    require(frames % config.entries == 1, "points", f"1 + {config.entries} n video frames", frames)
    first = points[:, :1].expand(-1, config.entries - 1, -1, -1)  # the image stands in for its whole block
    blocks = torch.cat([first, points], dim=1).unflatten(1, (-1, config.entries))
    maps = limb_maps(blocks, config.limbs, grid).flatten(2, 3)  # [B, n + 1, channels, h, w]
    steps = torch.cat([maps[:, 1:], maps[:, :-1]], dim=2) if config.with_previous else maps[:, 1:]
    return steps.transpose(1, 2)
