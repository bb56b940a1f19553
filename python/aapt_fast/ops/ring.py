# SPDX-License-Identifier: Apache-2.0
"""Frames of a stream in a ring: which slot a frame lies in, and how torch operators read and write it.

A ring is a contiguous tensor [B, S, H, W, C]. Frame n after the one in slot `start` lies in slot (start + n) mod S.
`start` is an int32 tensor [1] on the device of the ring, 0 or larger, so that a recorded CUDA graph can advance it and
nothing has to be read back; None stands for 0. A new ring is filled with zeros: the frames before a video.

A layer whose kernel has kt taps in time sees kt - 1 frames before each frame. So with T frames a step

    the layer reads            slots start, ..., start + T + kt - 2         modulo S, S >= T + kt - 1
    its producer writes        slots start + kt - 1, ..., start + T + kt - 2
    at the end of a step       start += T
"""

from __future__ import annotations

import torch
from torch import Tensor

from aapt_fast.errors import require, require_device, require_dtype, require_shape


def ring_slots(start: Tensor | None, count: int, ring: Tensor) -> Tensor:
    """Slots of `count` frames from `start` on in ring [B, S, H, W, C]: int64 [count], on the device of the ring."""
    numbers = torch.arange(count, device=ring.device)
    return (numbers if start is None else numbers + start) % ring.shape[1]


def read_frames(ring: Tensor, start: Tensor | None, count: int) -> Tensor:
    """`count` frames [B, count, H, W, C] of ring [B, S, H, W, C], contiguous, from slot `start` on."""
    return ring.index_select(1, ring_slots(start, count, ring))


def write_frames(frames: Tensor, ring: Tensor, start: Tensor | None) -> None:
    """Copy frames [B, T, H, W, C] into ring [B, S, H, W, C], the first one into slot `start`."""
    ring.index_copy_(1, ring_slots(start, frames.shape[1], ring), frames)


def check_ring(argument: str, ring: Tensor, shape: tuple[int | str, ...], least: int) -> None:
    """Raise ValueError unless `ring` has this shape [B, S, H, W, C] with at least `least` slots, and is contiguous."""
    require_shape(argument, ring, *shape)
    require(ring.shape[1] >= least, argument, f"at least {least} slots", ring.shape[1])
    require(ring.is_contiguous(), argument, "a contiguous tensor", f"strides {list(ring.stride())}")


def check_start(argument: str, start: Tensor | None, ring: Tensor) -> None:
    """Raise ValueError unless `start` is None or int32 [1] on the device of the ring [B, S, H, W, C]."""
    if start is None:
        return
    require_shape(argument, start, 1)
    require_dtype(argument, start, torch.int32)
    require_device(argument, start, ring.device)
