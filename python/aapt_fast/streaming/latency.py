# SPDX-License-Identifier: Apache-2.0
"""Times that a session's user waits, for the first frame and for every step, and whether the steps keep real time."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection

from aapt_fast.errors import require
from aapt_fast.worlds.world import FPS

PERCENTILES = (50, 95, 99)


def percentile(values: Collection[float], percent: float) -> float:
    """Find the smallest value that at least `percent` per cent of all values do not exceed (nearest rank)."""
    require(len(values) > 0, "values", "at least one", "none")
    return sorted(values)[max(math.ceil(percent / 100 * len(values)) - 1, 0)]


class LatencyCounter:
    """Times of one session. They are of the last `kept` steps, so that its size stays the same for days.

    Only the steps themselves are counted: not the time in which a program shows the frames or waits for the next
    control. A stream that does not keep real time on a CPU beside other busy processes gets two to three times as fast
    with `StreamSession.frames(..., ahead=True)`.

    `first_frame_s`: seconds from the start (constructor, `reset` or `fork`) until the session could take a step.
    `count`: steps since then.
    """

    def __init__(self, kept: int = 4096) -> None:
        self.first_frame_s = 0.0
        self.count = 0
        self._seconds: deque[float] = deque(maxlen=kept)
        self._frames: deque[int] = deque(maxlen=kept)

    def __repr__(self) -> str:
        steps = " ".join(f"{name}={ms:.1f}ms" for name, ms in self.step_ms.items() if ms is not None)
        parts = [f"count={self.count}", f"first_frame_s={self.first_frame_s:.3f}", steps, self.in_words()]
        return f"LatencyCounter({', '.join(part for part in parts if part)})"

    def in_words(self) -> str:
        """The frames per second beside real time, such as "31.0 fps (real time is 24)"; "" before the first step."""
        if self.fps is None:
            return ""
        slower = "" if self.keeps_real_time else ", not kept"
        return f"{self.fps:.1f} fps (real time is {FPS:.0f}{slower})"

    def record_step(self, seconds: float, frames: int) -> None:
        """Add a step that took `seconds` for `frames` video frames."""
        self.count += 1
        self._seconds.append(seconds)
        self._frames.append(frames)

    @property
    def step_ms(self) -> dict[str, float | None]:
        """Milliseconds per step by nearest rank, {"p50": ..., "p95": ..., "p99": ...}; None before the first step."""
        seconds = self._seconds
        return {f"p{each}": 1e3 * percentile(seconds, each) if seconds else None for each in PERCENTILES}

    @property
    def fps(self) -> float | None:
        """Video frames per second of the steps; None before the first one."""
        seconds = sum(self._seconds)
        return sum(self._frames) / seconds if seconds > 0 else None

    @property
    def keeps_real_time(self) -> bool | None:
        """True if the steps make at least the 24 video frames per second of all worlds; None before the first one."""
        return None if self.fps is None else self.fps >= FPS

    def as_dict(self) -> dict[str, object]:
        """Everything, ready for JSON: the properties by their names, and the 24 of `real_time_fps`."""
        return {
            "first_frame_s": self.first_frame_s,
            "step_ms": self.step_ms,
            "count": self.count,
            "fps": self.fps,
            "real_time_fps": FPS,
            "keeps_real_time": self.keeps_real_time,
        }
