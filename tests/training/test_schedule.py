# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from aapt_fast.training.schedule import sample_timesteps, warm_cosine


def test_rate_warms_up_linearly():
    assert warm_cosine(0, 10**9, warm_up=50) == pytest.approx(1 / 50)
    assert warm_cosine(24, 10**9, warm_up=50) == pytest.approx(0.5)
    assert [warm_cosine(step, 10**9, warm_up=50) for step in (49, 50, 80)] == pytest.approx([1, 1, 1])


def test_rate_falls_as_a_cosine_to_its_floor():
    assert warm_cosine(500, 1000, floor=0.1) == pytest.approx(0.55)  # half way between 1 and 0.1
    assert warm_cosine(1000, 1000, floor=0.1) == pytest.approx(0.1)
    rates = [warm_cosine(step, 1000) for step in range(50, 1000)]
    assert all(before > after for before, after in pairwise(rates))


def test_a_share_of_the_clips_sits_at_exactly_one():
    t = sample_timesteps(40_000, shift=1.0, share_at_one=0.3)
    assert float((t == 1).float().mean()) == pytest.approx(0.3, abs=0.01)
    assert t.min() >= 0 and t.max() == 1


@pytest.mark.parametrize("shift", [1.0, 24.0])
def test_the_rest_is_uniform_before_the_shift(shift):
    t = sample_timesteps(40_000, shift, share_at_one=0.0).double()
    u = t / (shift - (shift - 1) * t)  # the warp undone
    quantiles = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    assert (u.quantile(quantiles) - quantiles).abs().max() < 0.01
    assert (t == 1).sum() <= 1


def test_all_or_none_at_one():
    assert (sample_timesteps(100, 24.0, 1.0) == 1).all()
    assert (sample_timesteps(100, 1.0, 0.0) < 1).all()
