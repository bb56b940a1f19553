# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.presets import NANO
from aapt_fast.models.aapt.sampling import EulerSampler, sample_frame, timesteps
from aapt_fast.testing.compare import assert_near

MEAN, DEVIATION = 3.0, 0.5


class GaussianPredictor:
    """The exact E[x0 | x_t] for frames whose every number is N(MEAN, DEVIATION^2); caches are its log of levels."""

    def __init__(self, shift: float) -> None:
        self.config = SimpleNamespace(shift=shift, grids=())

    def __call__(self, noised, recycled, control, t, cache):
        t = t.view(-1, 1, 1, 1, 1)
        cache.append(float(t[0]))
        centred = noised - (1 - t) * MEAN
        variance = (1 - t) ** 2 * DEVIATION**2 + t**2
        return MEAN + (1 - t) * DEVIATION**2 / variance * centred


def run(noise: torch.Tensor, nfe: int, shift: float) -> tuple[torch.Tensor, list[float]]:
    """The sampled frame and the levels at which the predictor was asked, one per cache."""
    caches: list[list[float]] = [[] for _ in range(nfe)]
    frame = sample_frame(GaussianPredictor(shift), noise, torch.zeros_like(noise), None, caches)
    assert all(len(cache) == 1 for cache in caches)  # every evaluation has a cache of its own
    return frame, [cache[0] for cache in caches]


@pytest.mark.parametrize("shift", [1.0, 24.0])
def test_one_evaluation_goes_from_one_to_zero(shift):
    assert timesteps(1, shift).tolist() == [1.0, 0.0]


def test_timesteps_are_uniform_then_shifted():
    assert_near(timesteps(4, 1.0), torch.tensor([1, 0.75, 0.5, 0.25, 0]), 1e-7, "unshifted")
    expected = [24 * u / (1 + 23 * u) for u in (1, 0.75, 0.5, 0.25, 0)]
    assert_near(timesteps(4, 24.0), torch.tensor(expected), 1e-6, "shifted")


def test_no_evaluation_is_refused_and_so_are_more_than_any_model_is_made_for():
    for wrong in (0, 1001, 10**9):
        with pytest.raises(ValueError, match=f"expected 1 to 1000 evaluations per step, got {wrong}"):
            EulerSampler(wrong)
    with pytest.raises(ValueError, match="num_inference_steps: expected at least 1 evaluation per step, got 0"):
        timesteps(0, 1.0)


def test_one_evaluation_of_the_exact_predictor_gives_the_mean():
    frame, levels = run(torch.randn(2, 3, 1, 4, 4), 1, 24.0)
    assert_near(frame, torch.full_like(frame, MEAN), 1e-6, "frame")
    assert levels == [1.0]


@pytest.mark.parametrize("shift", [1.0, 24.0])
@pytest.mark.parametrize("nfe", [2, 5])
def test_euler_steps_have_their_closed_form(nfe, shift):
    """From t to s, x - (1 - t) MEAN is multiplied by (s t + (1 - s)(1 - t) DEVIATION^2) / variance(t)."""
    noise = torch.randn(2, 3, 1, 4, 4)
    levels = timesteps(nfe, shift).tolist()
    factor = 1.0
    for t, s in pairwise(levels):
        factor *= (s * t + (1 - s) * (1 - t) * DEVIATION**2) / ((1 - t) ** 2 * DEVIATION**2 + t**2)
    frame, asked = run(noise, nfe, shift)
    assert_near(frame, MEAN + factor * noise, 1e-5, "frame")
    assert asked == pytest.approx(levels[:-1])


def test_many_steps_converge_to_the_data_at_first_order():
    """The exact flow takes eps to MEAN + DEVIATION eps."""
    noise = torch.randn(1, 3, 1, 4, 4)
    errors = [float((run(noise, nfe, 1.0)[0] - MEAN - DEVIATION * noise).abs().max()) for nfe in (64, 128)]
    assert errors[1] < 0.02 and errors[0] / errors[1] == pytest.approx(2, rel=0.1)


@torch.no_grad()
def test_each_evaluation_of_a_generator_keeps_its_own_past():
    """Two evaluations per step: the caches hold the same frames, computed at their own levels."""
    model = Generator(NANO)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    noise, control = torch.randn(2, 1, 16, 1, 4, 4), torch.randn(1, 600, 1, 4, 4)
    recycled = torch.randn(1, 16, 1, 4, 4)
    caches = [model.new_cache() for _ in range(2)]
    first = sample_frame(model, noise[0], recycled, control, caches)
    second = sample_frame(model, noise[1], first, control, caches)
    assert [cache.next_frame for cache in caches] == [3, 3]

    level = float(timesteps(2, NANO.shift)[1])
    by_hand, past = [model.new_cache() for _ in range(2)], recycled
    for eps, frame in zip(noise, (first, second), strict=True):
        clean = model(eps, past, control, torch.ones(1), by_hand[0])
        noised = (1 - level) * clean + level * eps
        clean = model(noised, past, control, torch.tensor([level]), by_hand[1])
        assert_near(frame, clean, 1e-5, "frame")
        past = clean
