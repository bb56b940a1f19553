# SPDX-License-Identifier: Apache-2.0
"""Pairwise choice of test cases: every pair of values of two parameters occurs, most combinations do not."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations

Pair = tuple[tuple[str, Hashable], tuple[str, Hashable]]


def pairs_of(case: Mapping[str, Hashable]) -> set[Pair]:
    """Pairs of two parameters with their values in one case; a lone parameter is paired with itself."""
    values = sorted(case.items(), key=lambda item: item[0])
    return set(combinations(values, 2)) if len(values) > 1 else {(value, value) for value in values}


def pairwise(cases: Sequence[Mapping[str, Hashable]]) -> list[int]:
    """Indices of a few cases that have every pair of values which any of `cases` has.

    Greedy and deterministic: the case with the most pairs that are still missing comes next, the first of equals.

    Args:
        cases: one mapping per case, parameter -> value.

    Returns:
        Indices into `cases`, ascending.
    """
    pairs = [pairs_of(case) for case in cases]
    missing = set().union(*pairs)
    chosen = []
    while missing:
        best = max(range(len(cases)), key=lambda index: len(pairs[index] & missing))
        chosen.append(best)
        missing -= pairs[best]
    return sorted(chosen)
