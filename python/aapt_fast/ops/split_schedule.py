# SPDX-License-Identifier: Apache-2.0
"""Split of heads' keys over blocks in an attention kernel, so that the last wave of blocks is full."""

from __future__ import annotations

import functools
import heapq
from collections.abc import Iterator
from typing import NamedTuple

import torch

SHARES = 840
"""Shares of all keys; a multiple of 1 to 8."""

MOST_PARTS = 8
STEP = 14
"""Shares of a part that is not as long as the first one: a multiple of this, or 1 / parts of all."""

LEAST_ENTRIES_PER_PART = 16
"""Fewest entries of the page table in a part. The start and the end of a block cost more than a fuller wave gains
below this."""

BLOCK_COSTS_ENTRIES = 4.0
"""Time of a block's start and end, as entries of the page table (64 keys each). An estimate for the H200, to be
measured: 3 us, of 0.8 us per entry."""

COMBINING_COSTS_ENTRIES = 2.0
"""Time of the kernel that adds up parts before it reads the first one, likewise."""

PART_COSTS_ENTRIES = 0.03
"""Time of that kernel for a part of 256 queries, likewise: 64 KiB at 3 TB/s."""


class Schedule(NamedTuple):
    """Heads 0..whole-1 of all rows in one piece, those from `whole` on in parts with these shares of the keys."""

    whole: int
    shares: tuple[int, ...]

    @staticmethod
    def even(whole: int, parts: int) -> Schedule:
        """Parts of equal lengths; raises ValueError for numbers of parts that SHARES is no multiple of."""
        if parts < 1 or SHARES % parts:
            raise ValueError(f"parts: expected a divisor of {SHARES}, got {parts}")
        return Schedule(whole, (SHARES // parts,) * parts)


@functools.lru_cache(256)
def split_schedule(tiles: int, heads: int, entries: int, slots: int) -> Schedule:
    """Choose the schedule that ends first by a count of blocks; among equals the one with the fewest parts.

    Args:
        tiles: blocks (or clusters) for the queries of a head.
        heads: of all rows of the batch.
        entries: of a row of the page table.
        slots: blocks (or clusters) that run at the same time.
    """
    best = Schedule.even(heads, 1)
    least = makespan(tiles, heads, entries, best, slots)
    waves = tiles * heads // slots
    # More than the heads of the last two waves need not be split.
    fewest_whole = max(0, waves - 1) * slots // max(1, tiles)
    for shares in _shares(entries):
        for whole in range(fewest_whole, heads):
            schedule = Schedule(whole, shares)
            time = makespan(tiles, heads, entries, schedule, slots)
            if time < least - 1e-9:
                best, least = schedule, time
    return best


def _shares(entries: int) -> Iterator[tuple[int, ...]]:
    """Splits to choose from: a first part, and others of equal lengths that are not longer."""
    least = -(-SHARES * LEAST_ENTRIES_PER_PART // max(1, entries))
    for parts in range(2, MOST_PARTS + 1):
        even = SHARES // parts
        for share in sorted({even, *range(STEP, even, STEP)}):
            if share >= least:
                yield SHARES - (parts - 1) * share, *[share] * (parts - 1)


def makespan(tiles: int, heads: int, entries: int, schedule: Schedule, slots: int) -> float:
    """Time until the result is there, as entries of the page table; blocks start in order as slots become free."""
    split = heads - schedule.whole
    blocks = [(schedule.whole * tiles, float(entries))]
    blocks += [(split * tiles, entries * share / SHARES) for share in schedule.shares]
    free = [(0.0, slots)]  # a heap: when so many slots become free
    last = 0.0
    for count, length in blocks:
        while count:
            start, ready = heapq.heappop(free)
            taken = min(count, ready)
            end = start + length + BLOCK_COSTS_ENTRIES
            heapq.heappush(free, (end, taken))
            if ready > taken:
                heapq.heappush(free, (start, ready - taken))
            last, count = max(last, end), count - taken
    if split == 0 or len(schedule.shares) == 1:
        return last
    return last + COMBINING_COSTS_ENTRIES + split * tiles * len(schedule.shares) * PART_COSTS_ENTRIES


def slots_of(device: torch.device, cluster: int) -> int:
    """Number of clusters of `cluster` blocks that run at once, a block per multiprocessor (132 without a GPU)."""
    blocks = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132
    return blocks // cluster
