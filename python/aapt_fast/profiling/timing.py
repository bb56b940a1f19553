# SPDX-License-Identifier: Apache-2.0
"""Times of repetitions and their statistics: percentiles by nearest rank, noise, ratios of neighbours, late frames."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from aapt_fast.streaming.latency import percentile


def percentiles(milliseconds: Sequence[float]) -> dict[str, float]:
    """Find p50, p95 and p99, ready for JSON."""
    return {f"p{percent}_ms": percentile(milliseconds, percent) for percent in (50, 95, 99)}


@dataclass(frozen=True)
class Sample:
    """Times of one call, in the order of the repetitions."""

    milliseconds: tuple[float, ...]
    cold_l2: bool | None  # None: unknown
    timer: str

    @property
    def p50(self) -> float:
        """The median, in milliseconds."""
        return percentile(self.milliseconds, 50)

    @property
    def noise(self) -> float:
        """Distance between the medians of even and odd repetitions, the same work twice, as a share of p50."""
        even, odd = self.milliseconds[::2], self.milliseconds[1::2] or self.milliseconds
        return abs(statistics.median(even) - statistics.median(odd)) / self.p50

    def times(self, other: Sample) -> float:
        """Time of `other` over this time: the median over the repetitions, which were neighbours."""
        return statistics.median(b / a for a, b in zip(self.milliseconds, other.milliseconds, strict=True))

    def as_dict(self) -> dict[str, float | int | bool | str | None]:
        """The part of a result of schema 1 that is about time, ready for JSON."""
        return {
            **percentiles(self.milliseconds),
            "cold_l2": self.cold_l2,
            "repetitions": len(self.milliseconds),
            "noise": self.noise,
            "timer": self.timer,
        }


def late_by(milliseconds: Sequence[float], period_ms: float) -> list[float]:
    """Compute how late the frames of each step are, 0 where they are in time, for steps measured one after the other.

    Step k may begin when step k - 1 has ended and its own period, which a control opens, has begun. Its frames are due
    when that period ends.
    """
    end, late = 0.0, []
    for step, time in enumerate(milliseconds):
        end = max(end, step * period_ms) + time
        late.append(max(0.0, end - (step + 1) * period_ms))
    return late
