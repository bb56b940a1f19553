# SPDX-License-Identifier: Apache-2.0
"""Readings of a teacher: which point it reads, and what generators that follow it converge to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.presets import NANO
from aapt_fast.testing.compare import assert_near
from aapt_fast.training.refinement import Reader

SIZE = 3.0  # of the only value of a frame, which is SIZE or -SIZE


class TwoFutures:
    """The exact teacher of a world with two frames, each with probability 1/2."""

    def new_cache(self, *grid: int) -> list:
        return []

    def __call__(self, noised: Tensor, previous: Tensor, control: Tensor, t: Tensor, cache: list) -> Tensor:
        """The mean over both futures given x_t: tanh of half the difference of their log-likelihoods."""
        t = t.view(-1, 1, 1, 1, 1)
        return SIZE * torch.tanh(SIZE * (1 - t) * noised / t.square())


def settle(frames: Tensor, noise: Tensor, evaluations: int = 1, fresh: bool = False) -> Tensor:
    """The frames [B, 1, 1, 1, 1] of a generator that follows its readings exactly, 30 times."""
    for _ in range(30):
        used = torch.randn_like(noise) if fresh else noise
        frames = Reader(TwoFutures(), (0.3, 0.6), evaluations, used, frames).read(frames, frames)
    return frames


@pytest.mark.parametrize("evaluations", [1, 3])
def test_an_average_becomes_an_even_choice_by_the_noise(evaluations):
    torch.manual_seed(0)
    noise = torch.randn(4000, 1, 1, 1, 1)
    chosen = settle(torch.zeros_like(noise), noise, evaluations)
    assert float((chosen.abs() > 0.95 * SIZE).float().mean()) > 0.98
    assert torch.equal(chosen > 0, noise > 0)


def test_what_is_drawn_already_counts_for_more_than_the_noise():
    torch.manual_seed(0)
    noise = torch.randn(4000, 1, 1, 1, 1)
    drawn = torch.where(torch.rand_like(noise) < 0.5, 0.6 * SIZE, -0.6 * SIZE)
    kept = (settle(drawn, noise) * drawn > 0).float().mean()
    assert float(kept) > 0.9


def test_with_fresh_noise_the_choice_is_not_the_noises():
    torch.manual_seed(0)
    noise = torch.randn(4000, 1, 1, 1, 1)
    agrees = (settle(torch.zeros_like(noise), noise, fresh=True) * noise > 0).float().mean()
    assert float(agrees) == pytest.approx(0.5, abs=0.03)


def test_a_rollout_is_read_alike_in_one_piece_and_in_several():
    torch.manual_seed(1)
    teacher = Generator(NANO).requires_grad_(False)
    for parameter in teacher.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    frames, noise = torch.randn(2, 2, 16, 5, 4, 4)
    control = torch.randn(2, NANO.control.step_channels, 5, 4, 4)
    readings = []
    for spans in ([slice(0, 5)], [slice(0, 2), slice(2, 5)]):
        torch.manual_seed(2)  # t
        reader = Reader(teacher, (0.3, 0.6), 2, noise, frames[:, :, :1])
        parts = [reader.read(frames[:, :, span], control[:, :, span]) for span in spans]
        readings.append(torch.cat(parts, 2))
    assert_near(readings[1], readings[0], 1e-5)


class Noting:
    """A teacher that notes what it is shown, and always draws the same."""

    def __init__(self) -> None:
        self.shown: list[tuple[float, float, float, int]] = []
        self.caches = 0

    def new_cache(self, *grid: int) -> int:
        self.caches += 1
        return self.caches

    def __call__(self, noised: Tensor, previous: Tensor, control: Tensor, t: Tensor, cache: int) -> Tensor:
        self.shown.append((float(noised), float(previous), float(t), cache))
        return torch.full_like(noised, 7.0)


def test_a_reading_goes_straight_to_what_the_teacher_draws_and_is_the_past_of_the_next():
    teacher, noise = Noting(), torch.tensor([1.0, -1.0]).view(1, 1, 2, 1, 1)
    reader = Reader(teacher, (0.5, 0.5), 2, noise, torch.full((1, 1, 1, 1, 1), 3.0))
    frames = torch.tensor([5.0, 9.0]).view(1, 1, 2, 1, 1)
    assert reader.read(frames, frames).flatten().tolist() == [7.0, 7.0]
    # half of frame and noise at t = .5, then half of the way to 7 at t = .25, in a cache of its own
    assert teacher.shown == [(3.0, 3.0, 0.5, 1), (5.0, 3.0, 0.25, 2), (4.0, 7.0, 0.5, 1), (5.5, 7.0, 0.25, 2)]


def test_a_reading_gives_no_gradient():
    frames = torch.randn(2, 1, 1, 1, 1, requires_grad=True)
    reading = Reader(TwoFutures(), (0.3, 0.6), 2, torch.randn(2, 1, 1, 1, 1), frames).read(frames, frames)
    assert not reading.requires_grad


def test_levels_are_drawn_evenly_between_the_two():
    zeros = torch.zeros(20_000, 1, 1, 1, 1)
    t = Reader(TwoFutures(), (0.3, 0.7), 1, zeros, zeros).t
    assert t.quantile(torch.tensor([0.0, 0.5, 1.0])).tolist() == pytest.approx([0.3, 0.5, 0.7], abs=0.01)
