# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import itertools
from contextlib import nullcontext

import pytest
import torch

from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.presets import NANO
from aapt_fast.models.aapt.sampling import timesteps
from aapt_fast.training.clips import LatentClips
from aapt_fast.training.consistency import ConsistencyConfig, euler_step, train_consistency
from aapt_fast.training.losses import frame_distance
from aapt_fast.training.run import UNWATCHED, Watch
from aapt_fast.training.schedule import add_noise

SHORT = ConsistencyConfig(NANO, steps=6, batch=2, clip_frames=4, evaluate_every=3)


def clips() -> LatentClips:
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(3, 16, 6, 4, 4, generator=generator)
    return LatentClips(latents, torch.rand(3, 21, 19, 3, generator=generator), NANO)


def teacher() -> Generator:
    """Random weights that answer differently at different t."""
    torch.manual_seed(1)
    model = Generator(NANO)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        model.skip.copy_(torch.tensor([0.5, 0.3]))
    return model


def train(folder, config=SHORT, evaluate=lambda model: {}, start=None, watch=UNWATCHED) -> Generator:
    return train_consistency(folder, config, start or teacher(), clips(), torch.ones(16), evaluate, watch)


# ---- the path ----


def gaussian_losses(levels: int, deviation: float = 0.5, count: int = 20_000) -> tuple[float, float]:
    """Data from N(0, deviation^2): loss of the exact consistency map, and of the best predictor of x0.

    Along the teacher's path x / sigma(t) is constant, with sigma(t)^2 = ((1 - t) deviation)^2 + t^2, so that the path
    through x ends in x deviation / sigma(t).
    """
    grid = timesteps(levels, 1.0)
    drawn = torch.randint(levels, (count,))
    t, t_next = grid[drawn], grid[drawn + 1]
    clean = deviation * torch.randn(count, 1, 1, 1, 1)
    x = add_noise(clean, torch.randn_like(clean), t)

    def spread(t: torch.Tensor) -> torch.Tensor:
        return (((1 - t) * deviation) ** 2 + t**2).sqrt().view(-1, 1, 1, 1, 1)

    def best(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return (1 - t).view(-1, 1, 1, 1, 1) * deviation**2 / spread(t) ** 2 * x

    x_next = euler_step(x, best(x, t), t, t_next)
    exact = frame_distance(x * deviation / spread(t), x_next * deviation / spread(t_next), torch.ones(1))
    return float(exact), float(frame_distance(best(x, t), best(x_next, t_next), torch.ones(1)))


def test_the_exact_consistency_map_has_a_loss_that_vanishes_on_a_fine_grid():
    """The Euler step is off by O(1 / levels^2), the squared loss by its square: twice the levels, a sixteenth."""
    coarse, _ = gaussian_losses(32)
    fine, of_predictor = gaussian_losses(64)
    assert coarse / fine == pytest.approx(16, rel=0.35)
    assert fine < 0.02 * of_predictor


def test_euler_step_to_zero_is_the_answer_and_to_the_same_time_changes_nothing():
    x, end, t = torch.randn(3, 2, 1, 1, 1), torch.randn(3, 2, 1, 1, 1), torch.tensor([1.0, 0.5, 0.2])
    assert torch.equal(euler_step(x, end, t, torch.zeros(3)), end)
    assert torch.allclose(euler_step(x, end, t, t), x, atol=1e-6)


def test_add_noise_is_the_straight_line():
    clean, noise = torch.randn(2, 1, 1, 1, 1), torch.randn(2, 1, 1, 1, 1)
    line = add_noise(clean, noise, torch.tensor([0.25, 1.0]))
    assert torch.allclose(line[0], 0.75 * clean[0] + 0.25 * noise[0]) and torch.equal(line[1], noise[1])


# ---- the run ----


def test_targets_are_the_students_own_answers_at_the_teachers_next_point(tmp_path, monkeypatch):
    """One step, replayed by hand from what the three calls of the network saw."""
    calls, losses = [], []
    forward = Generator.forward

    def spy(model, x, recycled, control, t, cache):
        result = forward(model, x, recycled, control, t, cache)
        calls.append((model, x, t, result.detach(), torch.is_grad_enabled()))
        return result

    def loss(predicted, target, weights):
        losses.append((predicted.detach(), target))
        return frame_distance(predicted, target, weights)

    monkeypatch.setattr(Generator, "forward", spy)
    monkeypatch.setattr("aapt_fast.training.consistency.frame_distance", loss)
    config = dataclasses.replace(SHORT, steps=1, levels=2, batch=8)
    train(tmp_path, config)
    (of_teacher, x, t, end, graded), (student, x_next, t_next, answer, _), (same, x_again, t_again, predicted, _) = (
        calls
    )
    assert of_teacher is not student and student is same and not graded
    assert torch.equal(x, x_again) and torch.equal(t, t_again)
    grid = timesteps(2, NANO.shift)
    assert set(t.tolist()) == set(grid[:2].tolist())  # both levels occur among eight clips
    assert torch.equal(t_next, torch.where(t == grid[0], grid[1], grid[2]))
    assert torch.allclose(x_next, euler_step(x, end, t, t_next))
    last = (t_next == 0).view(-1, 1, 1, 1, 1)
    assert torch.equal(losses[0][0], predicted) and torch.equal(losses[0][1], torch.where(last, x_next, answer))


def test_the_teacher_does_not_change_and_the_student_does(tmp_path):
    start = teacher()
    before = {name: value.clone() for name, value in start.state_dict().items()}
    student = train(tmp_path, start=start)
    assert all(torch.equal(value, before[name]) for name, value in start.state_dict().items())
    assert not torch.equal(student.unpatch.weight, before["unpatch.weight"]) and not student.training


def test_interrupted_and_resumed_equals_straight_on(tmp_path):
    straight = train(tmp_path / "straight")

    stops = ["stop"]
    with pytest.raises(KeyboardInterrupt, match="stopped after step 0"):
        train(tmp_path / "resumed", watch=Watch(stop=lambda: nullcontext(lambda: bool(stops))))
    stops.clear()

    def stop_soon(model: Generator) -> dict[str, float]:
        stops.append("stop")
        return {}

    with pytest.raises(KeyboardInterrupt, match="stopped after step 1"):
        train(tmp_path / "resumed", evaluate=stop_soon, watch=Watch(stop=lambda: nullcontext(lambda: bool(stops))))
    resumed = train(tmp_path / "resumed")
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_the_loss_falls(tmp_path):
    """From a teacher whose answers move along its path; measured on one fixed batch of points."""
    start, batch = teacher(), clips().sample(3, 4, 1.0)
    with torch.no_grad():
        start.skip.copy_(torch.tensor([0.8, 0.0]))
    noise, levels = torch.randn_like(batch.clean), timesteps(4, NANO.shift)

    @torch.no_grad()
    def gap(model: Generator) -> float:
        total = 0.0
        for t, t_next in itertools.pairwise(levels[:-1]):
            times, times_next = t.expand(3), t_next.expand(3)
            x = add_noise(batch.clean, noise, times)
            end = start(x, batch.recycled, batch.control, times, start.new_cache())
            x_next = euler_step(x, end, times, times_next)
            answers = [
                model(point, batch.recycled, batch.control, moment, model.new_cache())
                for point, moment in ((x, times), (x_next, times_next))
            ]
            total += float((answers[0] - answers[1]).square().mean())
        return total

    config = dataclasses.replace(SHORT, steps=120, levels=4, batch=4, matrix_rate=0.003, rate=2e-2)
    student = train(tmp_path, config, start=start)
    assert gap(student) < 0.7 * gap(start)


def test_clips_that_are_too_short_are_refused(tmp_path):
    with pytest.raises(ValueError, match="clip_frames: expected at most 5, the frames of a clip, got 6"):
        train(tmp_path / "run", dataclasses.replace(SHORT, clip_frames=6))
    assert not (tmp_path / "run").exists()
