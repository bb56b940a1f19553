# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from itertools import product

import pytest

from aapt_fast.testing.pairwise import pairs_of, pairwise


def grid(*sizes: int) -> list[dict[str, int]]:
    """Every combination of so many values per parameter."""
    return [{f"p{i}": value for i, value in enumerate(values)} for values in product(*map(range, sizes))]


@pytest.mark.parametrize("sizes", [(1,), (7,), (3, 4), (2, 2, 2, 2), (3, 10, 4, 2), (8, 4, 2, 2, 3)], ids=str)
def test_every_pair_of_values_occurs(sizes):
    cases = grid(*sizes)
    chosen = [cases[index] for index in pairwise(cases)]
    (first, a), (second, b) = ("p0", sizes[0]), (f"p{len(sizes) - 1}", sizes[-1])
    assert {(case[first], case[second]) for case in chosen} >= set(product(range(a), range(b))) or first == second
    assert set().union(*map(pairs_of, chosen)) == set().union(*map(pairs_of, cases))


def test_few_cases_are_enough():
    sizes = (8, 4, 2, 2, 3)
    assert len(pairwise(grid(*sizes))) <= 1.25 * 8 * 4 < len(grid(*sizes)) / 4


def test_two_parameters_are_combined_in_full_and_one_is_kept_whole():
    assert pairwise(grid(3, 4)) == list(range(12))
    assert pairwise(grid(7)) == list(range(7))


def test_the_choice_does_not_change_from_run_to_run():
    cases = grid(3, 3, 3)
    assert pairwise(cases) == pairwise([dict(reversed(case.items())) for case in cases])


def test_only_combinations_that_exist_are_asked_for():
    cases = [case for case in grid(3, 3, 3) if case["p0"] <= case["p1"]]
    assert {(cases[i]["p0"], cases[i]["p1"]) for i in pairwise(cases)} == {
        (0, 0),
        (0, 1),
        (0, 2),
        (1, 1),
        (1, 2),
        (2, 2),
    }


def test_nothing_is_chosen_of_nothing():
    assert pairwise([]) == []
    assert pairwise([{}]) == []
