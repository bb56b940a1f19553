# SPDX-License-Identifier: Apache-2.0
"""The option `--device`, checked before any work."""

from __future__ import annotations

import torch

from aapt_fast.models.files.placement import require_usable_device


def usable_device(name: str) -> torch.device:
    """The device `name`. Raises ValueError if this machine lacks it, or torch cannot allocate on it."""
    require_usable_device(name, "--device")
    device = torch.device(name)
    try:
        torch.empty(1, device=device)
    except RuntimeError as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"--device: expected a device that works, got {name}: {why}") from error
    return device
