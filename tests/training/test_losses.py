# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch

from aapt_fast.training.consistency import euler_step
from aapt_fast.training.diffusion import decoder_sensitivity, flow_matching_loss
from aapt_fast.training.losses import (
    approximate_penalty,
    codec_loss,
    exact_penalty,
    frame_distance,
    relativistic_discriminator_loss,
    relativistic_generator_loss,
)
from aapt_fast.training.metrics import psnr, sharpness, ssim
from aapt_fast.training.schedule import add_noise

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


def test_relativistic_gradients_in_float64():
    """d/dx softplus(x) is the logistic function of x."""
    fake, real = (torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    gap = (fake - real).detach()
    (gradient,) = torch.autograd.grad(relativistic_generator_loss(fake, real), fake)
    assert torch.allclose(gradient, -torch.sigmoid(-gap) / 5, rtol=1e-12)
    (gradient,) = torch.autograd.grad(relativistic_discriminator_loss(fake, real), fake)
    assert torch.allclose(gradient, torch.sigmoid(gap) / 5, rtol=1e-12)
    assert torch.autograd.gradcheck(relativistic_generator_loss, (fake, real))


def quadratic_logits(x: torch.Tensor) -> torch.Tensor:
    """Two logits per row of x [B, 3]: a linear one with gradient (1, 2, -2), and |x|^2 / 2 with gradient x."""
    return torch.stack([x @ torch.tensor([1.0, 2.0, -2.0], dtype=x.dtype), x.square().sum(1) / 2], dim=1)


def test_exact_penalty_is_the_mean_squared_gradient():
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    expected = (9 + x.square().sum(1)).mean() / 2
    penalty = exact_penalty(quadratic_logits(x), x)
    assert torch.allclose(penalty, expected, rtol=1e-12)
    (gradient,) = torch.autograd.grad(penalty, x)
    assert torch.allclose(gradient, x / 4, rtol=1e-12)  # it can be trained through


@pytest.mark.parametrize("sigma", [1e-2, 1e-3])
def test_approximate_penalty_tends_to_sigma_squared_times_the_exact_one(sigma):
    x = torch.randn(200_000, 3, dtype=torch.float64, requires_grad=True)
    logits = quadratic_logits(x)
    exact = exact_penalty(logits, x).detach()
    disturbed = quadratic_logits(x + sigma * torch.randn_like(x))
    approximate = approximate_penalty(logits, disturbed).detach() / sigma**2
    assert float(approximate) == pytest.approx(float(exact), rel=0.02)


def test_approximate_penalty_of_a_constant_is_zero():
    logits = torch.randn(4, 3)
    assert approximate_penalty(logits, logits) == 0
    assert float(approximate_penalty(logits, logits + 0.5)) == pytest.approx(0.25, rel=1e-5)


def test_frame_distance_pulls_the_prediction_only():
    predicted = torch.zeros(2, 2, 1, 1, 1, requires_grad=True)
    target = torch.ones(2, 2, 1, 1, 1, requires_grad=True)
    loss = frame_distance(predicted, target, torch.tensor([3.0, 1.0]))
    loss.backward()
    assert loss.item() == 2 and target.grad is None
    assert torch.equal(predicted.grad.flatten(), torch.tensor([-1.5, -0.5, -1.5, -0.5]))


def test_losses_edit_nothing():
    tensors = [torch.randn(SHAPE) for _ in range(2)]
    copies = [tensor.clone() for tensor in tensors]
    for loss in (codec_loss, relativistic_generator_loss, relativistic_discriminator_loss):
        loss(*tensors)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors, copies, strict=True))


VIDEO, FRAMES, LOGITS, WEIGHTS = (
    torch.zeros(2, 3, 4, 8, 8),
    torch.zeros(2, 5, 4, 2, 2),
    torch.zeros(2, 4),
    torch.ones(5),
)
ONE, TWO = torch.ones(1), torch.ones(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: exact_penalty(torch.zeros(4), torch.zeros(4, 3)), "logits: expected shape [B, ...] with"),
        (lambda: exact_penalty(LOGITS, torch.zeros(3, 3)), "frames: expected shape [2, 3], got [3, 3]"),
        (lambda: exact_penalty(LOGITS, torch.zeros(2, 3)), "frames: expected recorded gradients"),
        (lambda: approximate_penalty(LOGITS, torch.zeros(2)), "disturbed: expected shape [2, 4], got [2]"),
        (lambda: relativistic_generator_loss(LOGITS, torch.zeros(2, 1)), "real: expected shape [2, 4], got [2, 1]"),
        (lambda: relativistic_discriminator_loss(LOGITS, torch.zeros(())), "real: expected shape [2, 4], got []"),
        (lambda: codec_loss(VIDEO, VIDEO[:1]), "truth: expected shape [2, 3, 4, 8, 8], got [1, 3, 4, 8, 8]"),
        (lambda: codec_loss(VIDEO[0], VIDEO[0]), "video: expected shape [B, C, T, H, W], got [3, 4, 8, 8]"),
        (lambda: frame_distance(FRAMES, FRAMES[:, :1], WEIGHTS), "target: expected shape [2, 5, 4, 2, 2], got [2, 1"),
        (lambda: frame_distance(FRAMES, FRAMES, ONE), "channel_weights: expected shape [5], got [1]"),
        (lambda: flow_matching_loss(FRAMES, FRAMES, ONE, WEIGHTS, 0.3), "t: expected shape [2], got [1]"),
        (lambda: flow_matching_loss(FRAMES, FRAMES, TWO, TWO, 0.3), "channel_weights: expected shape [5], got [2]"),
        (lambda: add_noise(FRAMES, FRAMES[:1], TWO), "noise: expected shape [2, 5, 4, 2, 2], got [1, 5, 4, 2, 2]"),
        (lambda: euler_step(FRAMES, FRAMES, TWO, ONE), "t_next: expected shape [2], got [1]"),
        (lambda: decoder_sensitivity(lambda x: x, FRAMES[0]), "latents: expected shape [B, C, F, h, w], got [5, 4, 2"),
        (lambda: psnr(VIDEO, VIDEO[:1]), "truth: expected shape [2, 3, 4, 8, 8], got [1, 3, 4, 8, 8]"),
        (lambda: ssim(VIDEO[:, :1], VIDEO[:, :1]), "video: expected shape [2, 3, T, H, W], got [2, 1, 4, 8, 8]"),
        (lambda: sharpness(VIDEO[0, 0], VIDEO[0, 0]), "video: expected shape [3, T, H, W], got [4, 8, 8]"),
    ],
)
def test_other_shapes_are_refused_by_name(call, message):
    """Broadcasting would give a number for most of them."""
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value).startswith(message)
