# SPDX-License-Identifier: Apache-2.0
"""Times that a session's user waits: for the first frame and for every step."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection

from aapt_fast.errors import require

PERCENTILES = (50, 95, 99)


def percentile(values: Collection[float], percent: float) -> float:
    """Find the smallest value that at least `percent` per cent of all values do not exceed (nearest rank)."""
    require(len(values) > 0, "values", "at least one", "none")
    return sorted(values)[max(math.ceil(percent / 100 * len(values)) - 1, 0)]


class LatencyCounter:
    """Times of one session. Percentiles are over the last `kept` steps, so that its size stays the same for days.

    `first_frame_s`: seconds from the start (constructor, `reset` or `fork`) until the session could take a step.
    `count`: steps since then.
    """

    def __init__(self, kept: int = 4096) -> None:
        self.first_frame_s = 0.0
        self.count = 0
        self._seconds: deque[float] = deque(maxlen=kept)

    def __repr__(self) -> str:
        steps = " ".join(f"{name}={ms:.1f}ms" for name, ms in self.step_ms.items() if ms is not None)
        return f"LatencyCounter(count={self.count}, first_frame_s={self.first_frame_s:.3f}{steps and ', ' + steps})"

    def record_step(self, seconds: float) -> None:
        """Add a step that took `seconds`."""
        self.count += 1
        self._seconds.append(seconds)

    @property
    def step_ms(self) -> dict[str, float | None]:
        """Milliseconds per step by nearest rank, {"p50": ..., "p95": ..., "p99": ...}; None before the first step."""
        seconds = self._seconds
        return {f"p{each}": 1e3 * percentile(seconds, each) if seconds else None for each in PERCENTILES}

    def as_dict(self) -> dict[str, object]:
        """Everything, ready for JSON: {"first_frame_s": ..., "step_ms": {...}, "count": ...}."""
        return {"first_frame_s": self.first_frame_s, "step_ms": self.step_ms, "count": self.count}
