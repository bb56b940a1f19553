# SPDX-License-Identifier: Apache-2.0
"""Arithmetic of a training: weights in float32, matrix products in bfloat16 where that is faster."""

from __future__ import annotations

import torch

from aapt_fast.models.files.placement import fast_dtype


def mixed_precision() -> torch.autocast:
    """The context in which networks train: autocast to bfloat16 on a CPU that computes in it, else plain float32.

    A CPU without such instructions emulates them, at a fifth of the speed of float32.
    """
    device = torch.device("cpu")
    return torch.autocast(device.type, torch.bfloat16, enabled=fast_dtype(device) is torch.bfloat16)
