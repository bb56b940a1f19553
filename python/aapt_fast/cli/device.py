# SPDX-License-Identifier: Apache-2.0
"""The options `--device` and `--dtype`, checked before any work."""

from __future__ import annotations

import torch

from aapt_fast.models.files.placement import require_usable_device


def usable_device(name: str | None) -> torch.device:
    """The device `name`, or without one a GPU if there is one, else the CPU.

    Raises ValueError if this machine lacks it, or torch cannot allocate on it.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    require_usable_device(name, "--device")
    device = torch.device(name)
    try:
        torch.empty(1, device=device)
    except RuntimeError as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"--device: expected a device that works, got {name}: {why}") from error
    return device
