# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import heapq
import random

import pytest

from aapt_fast.ops.split_schedule import LEAST_ENTRIES_PER_PART, Schedule, makespan, split_schedule


def played(tiles: int, heads: int, schedule: Schedule, slots: int) -> float:
    """The same time, block by block: each starts where a slot becomes free first."""
    ends = [0] * slots
    blocks = [schedule.parts] * (schedule.whole * tiles)
    blocks += [1] * ((heads - schedule.whole) * tiles * schedule.parts)
    for length in blocks:
        heapq.heappush(ends, heapq.heappop(ends) + length)
    return max(ends) / schedule.parts


def test_makespan_is_that_of_blocks_one_by_one():
    for _ in range(2000):
        tiles, heads, slots, parts = (random.randint(1, most) for most in (6, 9, 20, 6))
        schedule = Schedule(random.randint(0, heads), parts)
        assert makespan(tiles, heads, schedule, slots) == played(tiles, heads, schedule, slots)


@pytest.mark.parametrize(
    ("tiles", "heads", "entries", "expected", "waves"),
    [
        (5, 24, 608, Schedule(13, 6), 11 / 6),  # 1,196 queries in pairs of blocks, 32 frames of 19 pages
        (7, 12, 525, Schedule(8, 7), 9 / 7),  # 1,560 queries, 21 frames of 25 pages
        (15, 24, 969, Schedule(22, 2), 5.5),  # 3,600 queries, 17 frames of 57 pages
        (5, 26, 608, Schedule(26, 1), 2.0),  # 1.97 waves: nothing to gain
    ],
)
def test_schedules_of_the_shapes_that_are_measured(tiles, heads, entries, expected, waves):
    assert split_schedule(tiles, heads, entries, 66) == expected
    assert makespan(tiles, heads, expected, 66) == pytest.approx(waves)


def test_a_schedule_is_never_later_than_without_a_split():
    for _ in range(300):
        tiles, heads, entries, slots = (random.randint(1, most) for most in (20, 40, 1000, 80))
        schedule = split_schedule(tiles, heads, entries, slots)
        assert 0 <= schedule.whole <= heads
        assert schedule.parts == 1 or entries >= schedule.parts * LEAST_ENTRIES_PER_PART
        assert makespan(tiles, heads, schedule, slots) <= makespan(tiles, heads, Schedule(heads, 1), slots)


@pytest.mark.parametrize(("tiles", "heads", "entries"), [(0, 4, 600), (3, 0, 600), (3, 4, 0), (3, 4, 31)])
def test_nothing_is_split_where_there_is_little_or_nothing_to_do(tiles, heads, entries):
    assert split_schedule(tiles, heads, entries, 66) == Schedule(heads, 1)
