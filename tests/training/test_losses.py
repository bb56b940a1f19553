# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch

from aapt_fast.training.losses import codec_loss, relativistic_discriminator_loss, relativistic_generator_loss

SHAPE = (2, 3, 5, 8, 8)


def test_codec_loss_of_the_truth_is_zero():
    truth = torch.randn(SHAPE)
    assert codec_loss(truth, truth) == 0


@pytest.mark.parametrize("offset", [0.5, -0.25])
def test_codec_loss_of_a_constant_offset(offset):
    """No gradient differs: |c| + 2 c^2."""
    truth = torch.randn(SHAPE)
    assert float(codec_loss(truth + offset, truth)) == pytest.approx(abs(offset) + 2 * offset**2, rel=1e-5)


@pytest.mark.parametrize("direction", ["across", "down"])
def test_codec_loss_of_a_ramp(direction):
    """Error 0, s, 2 s .. 7 s: mean 3.5 s, gradient s in one direction, mean square 17.5 s^2."""
    slope = 0.1
    ramp = slope * torch.arange(8.0)
    error = (ramp if direction == "across" else ramp[:, None]).expand(SHAPE)
    expected = 3.5 * slope + 0.5 * slope + 2 * 17.5 * slope**2
    assert float(codec_loss(error, torch.zeros(SHAPE))) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", [relativistic_generator_loss, relativistic_discriminator_loss])
def test_relativistic_losses_at_equal_logits_are_log_two(loss):
    logits = torch.randn(7, 1, 2, 2)
    assert float(loss(logits, logits)) == pytest.approx(math.log(2), rel=1e-6)


def test_relativistic_losses_pull_in_opposite_directions():
    fake, real = torch.zeros(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    relativistic_generator_loss(fake, real).backward()
    assert torch.equal(fake.grad, torch.full((4,), -0.125)) and torch.equal(real.grad, torch.full((4,), 0.125))
    fake.grad = real.grad = None
    relativistic_discriminator_loss(fake, real).backward()
    assert torch.equal(fake.grad, torch.full((4,), 0.125)) and torch.equal(real.grad, torch.full((4,), -0.125))


def test_relativistic_losses_compare_pairs():
    """One large gap and one of the other sign: not what the difference of the means would give."""
    fake, real = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 1.0])
    expected = (math.log1p(math.exp(-3)) + math.log1p(math.exp(1))) / 2
    assert float(relativistic_generator_loss(fake, real)) == pytest.approx(expected, rel=1e-6)
    assert float(relativistic_discriminator_loss(real, fake)) == pytest.approx(expected, rel=1e-6)


def test_losses_edit_nothing():
    tensors = [torch.randn(SHAPE) for _ in range(2)]
    copies = [tensor.clone() for tensor in tensors]
    for loss in (codec_loss, relativistic_generator_loss, relativistic_discriminator_loss):
        loss(*tensors)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors, copies, strict=True))
