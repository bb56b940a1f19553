# SPDX-License-Identifier: Apache-2.0
"""The memory that a session of each preset needs at its resolutions, against that of this machine."""

from __future__ import annotations

from typing import Any

import torch

from aapt_fast.cli.choices import planned_names
from aapt_fast.limits import memory_left
from aapt_fast.profiling.systems import LARGE, find_system

PAPER_SIZES = ((736, 416), (1280, 720))
"""Resolutions of the paper's two results, which presets of its size are planned at."""


def memory_needed(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Plan a session of every preset and bundled model, with weights in `dtype`, at the sizes that it is meant for.

    Returns JSON-ready values: `available_bytes` (None where the system does not say) and `sessions`, a list with
    preset, resolution, needed_bytes and fits (None where that is unknown). Nothing is loaded.
    """
    free = memory_left(device)
    sessions = []
    for preset in planned_names():
        for size in PAPER_SIZES if preset in LARGE else (None,):
            system = find_system(preset, size)
            needed = system.memory(dtype).total()
            sessions.append(
                {
                    "preset": preset,
                    "resolution": "x".join(map(str, system.size)),
                    "needed_bytes": needed,
                    "fits": None if free is None else needed <= free,
                }
            )
    return {"available_bytes": free, "dtype": str(dtype).removeprefix("torch."), "sessions": sessions}
