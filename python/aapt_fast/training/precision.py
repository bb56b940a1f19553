# SPDX-License-Identifier: Apache-2.0
"""Arithmetic of a training: weights in float32, matrix products in bfloat16 where that is faster."""

from __future__ import annotations

import torch

from aapt_fast.models.files.placement import fast_dtype


def training_dtype(device: torch.device) -> torch.dtype:
    """The dtype of matrix products: bfloat16 on a device that computes in it, else float32.

    A CPU without such instructions emulates them, at a fifth of the speed of float32.
    """
    return fast_dtype(device)


def mixed_precision(device: torch.device) -> torch.autocast:
    """The context in which networks train: autocast to `training_dtype`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=training_dtype(device) is torch.bfloat16)
