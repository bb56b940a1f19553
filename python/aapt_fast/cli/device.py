# SPDX-License-Identifier: Apache-2.0
"""What `--device` names, checked before any work."""

from __future__ import annotations

import torch

from aapt_fast.errors import require


def usable_device(name: str) -> torch.device:
    """The device `name`, if this machine has it and torch can put something on it. Raises ValueError otherwise."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = {"cpu": "cpu"} | {f"cuda:{index}": "cuda" for index in range(count)}
    expected = "cpu: torch finds no CUDA device" if not count else " or ".join(["cpu", "cuda", *list(names)[1:]])
    require(name in {*names, *names.values()}, "--device", expected, name or "nothing")
    device = torch.device(name)
    try:
        torch.empty(1, device=device)
    except RuntimeError as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"--device: expected a device that works, got {name}: {why}") from error
    return device
