# SPDX-License-Identifier: Apache-2.0
"""The rule for results and the ratio of times, on numbers that are worked out by hand."""

from __future__ import annotations

import pytest
import torch

from aapt_fast.profiling.timing import Sample
from aapt_fast.verification.edge_cases import EdgeCase, Expected
from aapt_fast.verification.judge import against_best, require_right

NAN = torch.nan


def case(oracle: list[float], in_torch: list[float], floor: float = 1e-6) -> EdgeCase:
    return EdgeCase("a case", (), tuple, (Expected(torch.tensor(oracle).double(), torch.tensor(in_torch), floor),))


@pytest.mark.parametrize(
    ("result", "right"),
    [
        ([1.0, 2.0], True),
        ([1.0, 2.019], True),  # torch is off by 0.01
        ([1.0, 2.021], False),
        ([NAN, 2.0], False),
        ([torch.inf, 2.0], False),
    ],
)
def test_an_error_is_at_most_twice_that_of_torch(result: list[float], right: bool) -> None:
    judged = case([1.0, 2.0], [1.0, 2.01])
    if right:
        require_right((torch.tensor(result),), judged)
    else:
        with pytest.raises(ValueError, match=r"output 0: expected an error of at most 0.02, .* got"):
            require_right((torch.tensor(result),), judged)


@pytest.mark.parametrize(
    ("result", "right"), [([NAN, -torch.inf], True), ([0.0, -torch.inf], False), ([NAN, 0], False)]
)
def test_nan_and_infinities_have_to_be_where_they_belong(result: list[float], right: bool) -> None:
    judged = case([NAN, -torch.inf], [NAN, -torch.inf])
    if right:
        require_right((torch.tensor(result),), judged)
    else:
        with pytest.raises(ValueError, match="output 0"):
            require_right((torch.tensor(result),), judged)


def test_the_floor_grows_with_the_numbers() -> None:
    judged = case([1000.0, NAN], [1000.0, NAN])
    require_right((torch.tensor([1000.0005, NAN]),), judged)
    with pytest.raises(ValueError, match=r"at most 0\.001"):
        require_right((torch.tensor([1000.002, NAN]),), judged)


def test_the_best_is_the_fastest_of_the_rivals() -> None:
    times = {"ours": (2.0, 2.0), "fast": (3.0, 5.0), "slow": (9.0, 9.0), "no rival": (0.1, 0.1)}
    samples = {name: Sample(milliseconds, None, "t") for name, milliseconds in times.items()}
    assert against_best(samples, "ours", ["slow", "fast"]) == ("fast", 2.0)  # the median of 1.5 and 2.5
