# SPDX-License-Identifier: Apache-2.0
"""The options `--device` and `--dtype`, checked before any work."""

from __future__ import annotations

import torch

from aapt_fast.models.files.placement import fast_dtype, require_usable_device

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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


def chosen_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """The dtype `name` of weights, or without one bfloat16 on a GPU that computes in it, else float32.

    A GPU that is not there counts as one that does: `aapt-fast bench` predicts for GPUs of that kind.
    """
    if name is not None:
        return DTYPES[name]
    if device.type == "cuda":
        return fast_dtype(device) if torch.cuda.is_available() else torch.bfloat16
    return torch.float32
