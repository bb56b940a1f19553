# SPDX-License-Identifier: Apache-2.0
"""Other processes that compete with a command for the CPU."""

from __future__ import annotations

import os


def processes() -> float | None:
    """Processes that ran or waited for a core, averaged over the last minute; None where the system does not tell."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None


def competition(busy: float | None) -> str | None:
    """Words about `busy` processes if they are more than the cores, else None."""
    cores = os.cpu_count() or 1
    if busy is None or busy <= cores:
        return None
    return f"other processes compete for the {cores} cores: {busy} of them ran or waited"
