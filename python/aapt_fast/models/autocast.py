# SPDX-License-Identifier: Apache-2.0
"""Protection from the autocast context of a caller."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """The context in which a stream computes: in the dtype of its weights, whatever autocast the caller is in."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()
