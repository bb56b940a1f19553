# SPDX-License-Identifier: Apache-2.0
"""Times of repetitions, and what they say: percentiles by nearest rank, noise, ratios of neighbours, late frames."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


def percentile(values: Sequence[float], percent: float) -> float:
    """By nearest rank: the smallest value that at least `percent` per cent of all values do not exceed."""
    if not values:
        raise ValueError("values: expected at least one, got none")
    return sorted(values)[max(math.ceil(percent / 100 * len(values)) - 1, 0)]


@dataclass(frozen=True)
class Sample:
    """Times of one call, in the order of the repetitions."""

    milliseconds: tuple[float, ...]
    cold_l2: bool | None  # None: not known, on a CPU
    timer: str

    @property
    def p50(self) -> float:
        return percentile(self.milliseconds, 50)

    @property
    def noise(self) -> float:
        """How far the medians of the even and the odd repetitions, the same work twice, lie apart, as a share."""
        even, odd = self.milliseconds[::2], self.milliseconds[1::2] or self.milliseconds
        return abs(statistics.median(even) - statistics.median(odd)) / self.p50

    def times(self, other: Sample) -> float:
        """How many times as long as this one `other` took: the median over the repetitions, which were neighbours."""
        return statistics.median(b / a for a, b in zip(self.milliseconds, other.milliseconds, strict=True))

    def as_dict(self) -> dict[str, float | int | bool | str | None]:
        """The part of a result of schema 1 that is about time."""
        return {
            "p50_ms": self.p50,
            "p95_ms": percentile(self.milliseconds, 95),
            "p99_ms": percentile(self.milliseconds, 99),
            "cold_l2": self.cold_l2,
            "repetitions": len(self.milliseconds),
            "noise": self.noise,
            "timer": self.timer,
        }


@dataclass(frozen=True)
class Lateness:
    """How late frames are that are due every `period_ms`, if each step begins as soon as it may.

    Step k may begin when step k - 1 has ended and its own period, which a control opens, has begun; its frames are due
    when that period ends. Computed from step times that were measured one right after the other.
    """

    period_ms: float
    milliseconds: tuple[float, ...]  # per step, 0 where it was in time

    def as_dict(self) -> dict[str, float | int]:
        """Ready for JSON."""
        late = [value for value in self.milliseconds if value > 0]
        return {
            "period_ms": self.period_ms,
            "steps": len(self.milliseconds),
            "late_steps": len(late),
            "late_share": len(late) / len(self.milliseconds),
            **{f"p{percent}_late_ms": percentile(self.milliseconds, percent) for percent in (50, 95, 99)},
            "max_late_ms": max(self.milliseconds),
        }


def lateness(milliseconds: Sequence[float], period_ms: float) -> Lateness:
    """What steps of these times, in this order, mean for a viewer who expects frames every `period_ms`."""
    end, late = 0.0, []
    for step, time in enumerate(milliseconds):
        end = max(end, step * period_ms) + time
        late.append(max(0.0, end - (step + 1) * period_ms))
    return Lateness(period_ms, tuple(late))
