# SPDX-License-Identifier: Apache-2.0
"""The host's numbers for a step, taken to the device in one copy.

A copy of one number takes as long as that of a page list, and from ordinary memory it keeps the host waiting. So the
parts of a step are packed into one piece of pinned memory, and the device's tensors are views of its copy. On the CPU
nothing is copied.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ALIGNMENT = 16  # bytes; no dtype needs more


def to_device(groups: Sequence[Sequence[Tensor]], device: torch.device) -> list[list[Tensor]]:
    """The tensors [...] of each group on `device`, those on the CPU in one copy; it is launched, not waited for.

    A tensor that is there already is returned as it is.
    """
    on_host = [tensor for group in groups for tensor in group if tensor.device.type == "cpu"]
    if device.type == "cpu" or not on_host:
        return [[tensor.to(device) for tensor in group] for group in groups]
    copied = iter(_copied(on_host, device))
    return [
        [next(copied) if tensor.device.type == "cpu" else tensor.to(device) for tensor in group] for group in groups
    ]


def _copied(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copies of tensors [...] of the CPU: views of one tensor on `device`."""
    nbytes = sum(map(_room, tensors))
    # A new buffer per call, never one that is kept: the copy may still be running when the host fills the next. Torch
    # keeps pinned memory for the next call, and gives a piece out again only when the copies from it have ended.
    buffer = torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=True)
    for view, tensor in zip(views_of(buffer, tensors), tensors, strict=True):
        view.copy_(tensor)
    return views_of(buffer.to(device, non_blocking=True), tensors)


def views_of(buffer: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Views of uint8 [nbytes], one after the other, with the shapes [...] and dtypes of `tensors`."""
    views, start = [], 0
    for tensor in tensors:
        views.append(buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape))
        start += _room(tensor)
    return views


def _room(tensor: Tensor) -> int:
    """Bytes of a tensor [...] and of the gap after it."""
    return -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
