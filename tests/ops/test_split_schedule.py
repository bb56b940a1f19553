# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import heapq
import random

import pytest

from aapt_fast.ops.split_schedule import (
    BLOCK_COSTS_ENTRIES,
    COMBINING_COSTS_ENTRIES,
    LEAST_ENTRIES_PER_PART,
    PART_COSTS_ENTRIES,
    SHARES,
    Schedule,
    makespan,
    split_schedule,
)


def played(tiles: int, heads: int, entries: int, schedule: Schedule, slots: int) -> float:
    """The same time, block by block: each starts where a slot becomes free first."""
    ends = [0.0] * slots
    blocks = [float(entries)] * (schedule.whole * tiles)
    parts = (heads - schedule.whole) * tiles
    blocks += [entries * share / SHARES for share in schedule.shares for _ in range(parts)]
    for length in blocks:
        heapq.heappush(ends, heapq.heappop(ends) + length + BLOCK_COSTS_ENTRIES)
    combined = parts * len(schedule.shares) if len(schedule.shares) > 1 else 0
    return max(ends) + (COMBINING_COSTS_ENTRIES + combined * PART_COSTS_ENTRIES if combined else 0)


def test_makespan_is_that_of_blocks_one_by_one():
    for _ in range(1000):
        tiles, heads, slots, parts, entries = (random.randint(1, most) for most in (6, 9, 20, 6, 700))
        shares = [random.randint(1, 100) for _ in range(parts - 1)]
        schedule = Schedule(random.randint(0, heads), (SHARES - sum(shares), *shares))
        arguments = tiles, heads, entries, schedule, slots
        assert makespan(*arguments) == pytest.approx(played(*arguments))


@pytest.mark.parametrize(
    ("tiles", "heads", "entries", "expected", "gain"),
    [
        (5, 24, 608, Schedule(2, (770, 70)), 1.08),  # 1,196 queries in pairs of blocks, 32 frames of 19 pages
        (7, 12, 525, Schedule.even(9, 7), 1.52),  # 1,560 queries, 21 frames of 25 pages
        (15, 24, 969, Schedule(17, (252, 196, 196, 196)), 1.09),  # 3,600 queries, 17 frames of 57 pages
        (5, 26, 608, Schedule.even(26, 1), 1.0),  # 1.97 waves: nothing to gain
        (5, 28, 608, Schedule.even(26, 8), 1.40),
    ],
)
def test_schedules_of_the_shapes_that_are_measured(tiles, heads, entries, expected, gain):
    schedule = split_schedule(tiles, heads, entries, 66)
    assert schedule == expected
    whole = makespan(tiles, heads, entries, Schedule.even(heads, 1), 66)
    assert whole / makespan(tiles, heads, entries, schedule, 66) == pytest.approx(gain, abs=0.01)


def test_a_schedule_is_never_later_than_without_a_split():
    for _ in range(20):
        tiles, heads, entries, slots = (random.randint(1, most) for most in (20, 40, 1000, 80))
        schedule = split_schedule(tiles, heads, entries, slots)
        assert 0 <= schedule.whole <= heads
        assert sum(schedule.shares) == SHARES
        if len(schedule.shares) > 1:
            assert min(schedule.shares) * entries >= LEAST_ENTRIES_PER_PART * SHARES
        whole = Schedule.even(heads, 1)
        assert makespan(tiles, heads, entries, schedule, slots) <= makespan(tiles, heads, entries, whole, slots)


@pytest.mark.parametrize(("tiles", "heads", "entries"), [(0, 4, 600), (3, 0, 600), (3, 4, 0), (3, 4, 31)])
def test_nothing_is_split_where_there_is_little_or_nothing_to_do(tiles, heads, entries):
    assert split_schedule(tiles, heads, entries, 66) == Schedule.even(heads, 1)


def test_equal_parts_divide_the_shares():
    assert Schedule.even(3, 7) == Schedule(3, (120,) * 7)
    with pytest.raises(ValueError, match="parts: expected a divisor of 840, got 9"):
        Schedule.even(0, 9)
