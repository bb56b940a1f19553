# SPDX-License-Identifier: Apache-2.0
"""Learned time steps: levels always descend, and a grid learns where a sampler has to look."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from torch import Tensor, nn

from aapt_fast.models.aapt.config import GeneratorConfig, TimeGrid
from aapt_fast.models.aapt.presets import NANO
from aapt_fast.models.aapt.sampling import EulerSampler, levels_of, timesteps
from aapt_fast.profiling.inputs import random_controls
from aapt_fast.testing.compare import assert_near
from aapt_fast.testing.small_trainings import clips, random_generator
from aapt_fast.testing.streams import STREAMS, random_model, random_session
from aapt_fast.training.discretize import GridConfig, Levels, learn_grid, move_within_ball, sample_clip

GRID = TimeGrid((1.0, 0.5, 0.2, 0.0), (1.0, 0.6, 0.15))
SHORT = GridConfig(evaluations=3, teacher_evaluations=8, batches=2, batch=2, clip_frames=4, steps=4)


@pytest.mark.parametrize(
    ("solver", "network", "said"),
    [
        ((1.0, 0.5, 0.5, 0.0), (1.0, 0.6, 0.1), "grid.solver: expected levels that descend from 1 to 0"),
        ((0.9, 0.5, 0.0), (0.9, 0.5), "grid.solver: expected levels that descend from 1 to 0"),
        ((1.0, 0.5, 0.1), (1.0, 0.5), "grid.solver: expected levels that descend from 1 to 0"),
        ((1.0, 0.5, 0.0), (1.0,), "grid.network: expected 2 levels"),
        ((1.0, 0.5, 0.0), (0.5, 0.6), "grid.network: expected levels in 0..1 that descend"),
        ((1.0, 0.5, 0.0), (1.2, 0.6), "grid.network: expected levels in 0..1 that descend"),
    ],
)
def test_levels_that_do_not_descend_are_refused(solver, network, said) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        TimeGrid(solver, network)


def test_one_grid_for_each_number_of_evaluations() -> None:
    with pytest.raises(ValueError, match=re.escape("grids: expected one for each number of evaluations, got [3, 3]")):
        dataclasses.replace(NANO, grids=(GRID, GRID))
    config = dataclasses.replace(NANO, grids=(GRID,))
    assert_near(levels_of(config, 3), torch.tensor([GRID.solver, (*GRID.network, 0.0)]), 1e-7, "learned")
    assert_near(levels_of(config, 2), timesteps(2, NANO.shift).expand(2, -1), 1e-7, "shifted")


def test_a_file_keeps_its_grids_and_a_session_uses_them(tmp_path) -> None:
    model = random_model(STREAMS["pose"])
    controls = random_controls(model, 2, seed=3)

    def video(model) -> Tensor:
        with random_session(model, sampler=EulerSampler(3)) as session:
            return torch.cat([session.step(control) for control in controls])

    plain = video(model)
    model.generator.config = dataclasses.replace(model.generator.config, grids=(GRID,))
    learned = video(model)
    assert not torch.equal(plain, learned)
    model.save_pretrained(tmp_path / "model.safetensors", dtype="float32")
    again = type(model).from_pretrained(tmp_path / "model.safetensors")
    assert again.generator.config.grids == (GRID,)
    assert torch.equal(video(again), learned)


def test_old_configurations_have_no_grids() -> None:
    fields = dataclasses.asdict(NANO)
    del fields["grids"]
    assert GeneratorConfig.from_json(fields) == NANO


def test_any_parameters_make_levels_that_descend() -> None:
    levels = Levels(timesteps(4, 2.0))
    solver, network = levels()
    assert_near(solver, timesteps(4, 2.0), 3e-3, "start")
    assert_near(network, solver[:-1], 1e-7, "start of the network's levels")
    for scale in (1, 10, 100):
        with torch.no_grad():
            levels.widths.normal_(std=scale)
            levels.offsets.normal_(std=scale)
        levels.grid()  # raises if they do not


def test_every_parameter_of_a_grid_gets_a_gradient() -> None:
    generator, levels = random_generator().requires_grad_(False), Levels(timesteps(3, 2.0))
    batch = clips().sample(2, 4, 0.5)
    noise = torch.randn_like(batch.clean).requires_grad_()
    kept = sample_clip(generator, noise, batch, *levels(), keep=True)
    again = sample_clip(generator, noise, batch, *levels())
    assert_near(again, kept, 1e-6, "checkpointed")
    again.square().mean().backward()
    for gradient in (levels.widths.grad, levels.offsets.grad, noise.grad):
        assert gradient is not None and gradient.isfinite().all() and (gradient != 0).any()


def test_displacements_stay_within_their_ball() -> None:
    noise, gradient = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    move = torch.zeros_like(noise)
    for _ in range(30):
        move = move_within_ball(move, gradient, noise, 0.1, 0.2)
    norms, most = move.flatten(1).norm(dim=1), 0.1 * noise.flatten(1).norm(dim=1)
    assert_near(norms, most, 1e-5, "at the rim")
    assert (torch.cosine_similarity(move.flatten(1), gradient.flatten(1)) < -0.99).all()


class Late(nn.Module):
    """A network whose clean frame is a tenth of the noised one down to t = .3, and then leaves that quickly."""

    config = dataclasses.replace(NANO, shift=1.0)

    def new_cache(self, *size: int) -> None:
        return None

    def forward(self, noised: Tensor, recycled: Tensor, control: Tensor, t: Tensor, cache: None) -> Tensor:
        share = torch.sigmoid(40 * (t - 0.3)).view(-1, 1, 1, 1, 1)
        return (1 - share) * noised.tanh() * 2 + share * 0.1 * noised


def test_a_grid_goes_where_the_network_changes() -> None:
    """On other noise and clips, too; and the same seed learns the same."""
    losses: list[float] = []
    config = dataclasses.replace(SHORT, teacher_evaluations=64, batch=4, steps=120, rate=0.05, ball=0.0)
    grid = learn_grid(Late(), clips(), torch.ones(16), config, lambda step, loss: losses.append(loss))
    assert losses[-1] < 0.6 * losses[0] and grid == learn_grid(Late(), clips(), torch.ones(16), config)
    torch.manual_seed(9)
    batch = clips().sample(8, 4, 0.5)
    noise, fine, coarse = torch.randn_like(batch.clean), timesteps(64, 1.0), timesteps(3, 1.0)
    target = sample_clip(Late(), noise, batch, fine, fine[:-1])
    uniform = sample_clip(Late(), noise, batch, coarse, coarse[:-1])
    learned = sample_clip(Late(), noise, batch, torch.tensor(grid.solver), torch.tensor(grid.network))
    assert (learned - target).square().mean() < 0.7 * (uniform - target).square().mean()


def test_learning_leaves_the_random_numbers_and_the_network_alone() -> None:
    generator = random_generator().requires_grad_(False)
    before = [parameter.clone() for parameter in generator.parameters()]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    learn_grid(generator, clips(), torch.ones(16), SHORT)
    assert torch.equal(torch.rand(3), expected)
    assert all(map(torch.equal, before, generator.parameters()))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (dict(evaluations=1), "evaluations: expected at least 2, got 1"),
        (dict(teacher_evaluations=4), "teacher_evaluations: expected more than the 4 of the grid, got 4"),
        (dict(ball=1.0), "ball: expected a share in 0..1, got 1.0"),
        (dict(steps=0), "steps: expected at least 1, got 0"),
    ],
)
def test_impossible_settings_are_refused(fields, said) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        GridConfig(**fields)


def test_clips_that_are_too_short_are_refused() -> None:
    with pytest.raises(ValueError, match="clip_frames: expected at most 8"):
        learn_grid(random_generator(), clips(), torch.ones(16), dataclasses.replace(SHORT, clip_frames=9))
