# SPDX-License-Identifier: Apache-2.0
"""Split of heads' keys over blocks in an attention kernel, so that the last wave of blocks is full."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

MOST_PARTS = 8
LEAST_ENTRIES_PER_PART = 16
"""Fewest entries of the page table in a part. The start and the end of a block cost more than a fuller wave gains
below this."""

PART_COSTS_ENTRIES = 9.0
"""Cost of a part beside its keys, as entries of the page table (64 keys each): its float32 result is written and read
again, and a block has a start and an end. An estimate for the H200, to be measured."""


class Schedule(NamedTuple):
    """Heads 0..whole-1 of all rows in one piece, those from `whole` on in `parts` parts."""

    whole: int
    parts: int


@functools.lru_cache(256)
def split_schedule(tiles: int, heads: int, entries: int, slots: int) -> Schedule:
    """Choose the schedule that ends first by a count of blocks; among equals the one with the fewest parts.

    Args:
        tiles: blocks (or clusters) for the queries of a head.
        heads: of all rows of the batch.
        entries: of a row of the page table.
        slots: blocks (or clusters) that run at the same time.
    """
    best = Schedule(heads, 1)
    least = makespan(tiles, heads, best, slots)
    for parts in range(2, min(MOST_PARTS, entries // LEAST_ENTRIES_PER_PART) + 1):
        for whole in range(heads):
            schedule = Schedule(whole, parts)
            per_slot = -(-(heads - whole) * tiles * parts // slots)
            time = makespan(tiles, heads, schedule, slots) + per_slot * PART_COSTS_ENTRIES / entries
            if time < least - 1e-9:
                best, least = schedule, time
    return best


def makespan(tiles: int, heads: int, schedule: Schedule, slots: int) -> float:
    """Time until the last block ends, in units of a whole block; blocks start in order as slots become free."""
    whole, parts = schedule.whole * tiles, schedule.parts
    pieces = (heads - schedule.whole) * tiles * parts
    full, late = divmod(whole, slots)  # slots with one whole block more than the others
    start = full * parts  # in units of a part
    if late and pieces <= (slots - late) * parts:
        return (start + parts) / parts
    return (start + -(-(pieces + late * parts) // slots)) / parts


def slots_of(device: torch.device, cluster: int) -> int:
    """Number of clusters of `cluster` blocks that run at once, a block per multiprocessor (132 without a GPU)."""
    blocks = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132
    return blocks // cluster
