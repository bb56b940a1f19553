# SPDX-License-Identifier: Apache-2.0
"""Learned time steps: where few evaluations of a frozen stage 1 lose least against many. Reads top to bottom.

After LD3, "Learning to Discretize Denoising Diffusion ODEs" (arXiv 2405.15506). A step of n evaluations has n + 1
levels between which Euler steps lead, and n levels that the network is told, which need not be the same. Both are
learned so that the few-step sampler makes what the same network makes of the same noise in many steps. Asking for
exactly that is more than few steps can do; so, as in LD3's soft objective, each noise may move within a small ball
around itself, and only some noise of the ball has to lead to the teacher's frames.

All frames of a clip are sampled at once under the block-causal rule, each after the true frame before it, as in stage
1. `python -m aapt_fast.training.compare_grids` shows on the coin world what a learned grid is worth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aapt_fast.errors import require
from aapt_fast.models.aapt.config import TimeGrid
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.sampling import timesteps
from aapt_fast.training.clips import Batch, Clips
from aapt_fast.training.losses import frame_distance
from aapt_fast.training.precision import mixed_precision

SMALLEST_GAP = 1e-3  # between two levels, as a share of all


@dataclass(frozen=True)
class GridConfig:
    """Settings of a grid's learning."""

    evaluations: int = 4  # of the step that the grid is for
    teacher_evaluations: int = 24
    batches: int = 8  # of noise and clips, drawn once and used in turn
    batch: int = 8
    clip_frames: int = 8
    share_at_start: float = 0.5
    steps: int = 160
    rate: float = 0.02  # of the grid's parameters
    ball: float = 0.1  # most distance of a noise from its own place, as a share of its norm
    noise_rate: float = 0.05  # of the noises, as a share of the ball
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.evaluations >= 2, "evaluations", "at least 2", self.evaluations)
        more = f"more than the {self.evaluations} of the grid"
        require(self.teacher_evaluations > self.evaluations, "teacher_evaluations", more, self.teacher_evaluations)
        for name in ("batches", "batch", "steps"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        require(0 <= self.ball < 1, "ball", "a share in 0..1", self.ball)


class Levels(nn.Module):
    """A grid as parameters: any values of them make levels that descend.

    `widths` [n] are logits of the distances between the solver's levels, `offsets` [n - 1] move the network's levels
    after the first by less than half of the smaller distance to a neighbour. It begins with the solver's levels `start`
    [n + 1] for both.
    """

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.widths = nn.Parameter((start[:-1] - start[1:]).log())
        self.offsets = nn.Parameter(torch.zeros(len(start) - 2))

    def forward(self) -> tuple[Tensor, Tensor]:
        """The solver's levels [n + 1] and the network's [n]."""
        count = len(self.widths)
        widths = (1 - count * SMALLEST_GAP) * self.widths.softmax(0) + SMALLEST_GAP
        solver = torch.cat([widths.new_ones(1), 1 - widths.cumsum(0)[:-1], widths.new_zeros(1)])
        room = torch.minimum(widths[:-1], widths[1:])
        told = solver[1:-1] + 0.45 * room * self.offsets.tanh()
        return solver, torch.cat([solver[:1], told])

    @torch.no_grad()
    def grid(self) -> TimeGrid:
        """The grid as it is now."""
        solver, network = self()
        return TimeGrid(tuple(solver.tolist()), tuple(network.tolist()))


def sample_clip(
    generator: Generator, noise: Tensor, batch: Batch, solver: Tensor, network: Tensor, keep: bool = False
) -> Tensor:
    """Frames [B, C, F, h, w] that Euler steps between the levels `solver` [n + 1] make of noise of the same shape.

    The network is told the levels `network` [n]. Without `keep`, activations are computed again in the backward pass.
    """

    def evaluate(x: Tensor, level: Tensor) -> Tensor:
        with mixed_precision(x.device):
            t = level.expand(len(x))
            clean: Tensor = generator(x, batch.recycled, batch.control, t, generator.new_cache(*x.shape[-2:]))
        return clean.to(x.dtype)

    x, clean = noise, noise
    for before, after, level in zip(solver[:-1], solver[1:], network, strict=True):
        clean = evaluate(x, level) if keep else checkpoint(evaluate, x, level, use_reentrant=False)
        x = clean + after / before * (x - clean)
    return clean


def learn_grid(
    generator: Generator,
    clips: Clips,
    channel_weights: Tensor,
    config: GridConfig,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> TimeGrid:
    """Learn the grid of a frozen stage 1 on `clips`; `report` gets every step and its loss.

    `channel_weights` [C] weigh the latent channels in the distance. Deterministic in config.seed. Raises ValueError for
    clips that are too short.
    """
    clips.require_frames(config.clip_frames)
    drawn = torch.random.get_rng_state()
    torch.manual_seed(config.seed)
    try:
        batches = [clips.sample(config.batch, config.clip_frames, config.share_at_start) for _ in range(config.batches)]
        noises = [torch.randn_like(batch.clean) for batch in batches]
    finally:
        torch.random.set_rng_state(drawn)
    shift = generator.config.shift
    many = timesteps(config.teacher_evaluations, shift)
    with torch.no_grad():
        targets = [
            sample_clip(generator, noise, batch, many, many[:-1], keep=True)
            for noise, batch in zip(noises, batches, strict=True)
        ]
    levels, moved = Levels(timesteps(config.evaluations, shift)), [torch.zeros_like(noise) for noise in noises]
    optimiser = torch.optim.Adam(levels.parameters(), lr=config.rate, betas=(0.9, 0.99))
    for step in range(config.steps):
        number = step % config.batches
        for group in optimiser.param_groups:
            group["lr"] = config.rate * (1 - step / config.steps)
        noise, move = noises[number], moved[number].requires_grad_(config.ball > 0)
        frames = sample_clip(generator, noise + move, batches[number], *levels())
        loss = frame_distance(frames, targets[number], channel_weights)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if move.grad is not None:
            moved[number] = move_within_ball(move.detach(), move.grad, noise, config.ball, config.noise_rate)
        report(step, float(loss.detach()))
    return levels.grid()


def move_within_ball(move: Tensor, gradient: Tensor, noise: Tensor, ball: float, rate: float) -> Tensor:
    """The next displacement [B, ...] of the noises: down the gradient, and not further than `ball` times their norm.

    A step has the length `rate` times that radius, whatever the gradient's.
    """
    radius = ball * _norm(noise)
    stepped = move - rate * radius * gradient / _norm(gradient).clamp_min(1e-12)
    return stepped * (radius / _norm(stepped).clamp_min(1e-12)).clamp(max=1)


def _norm(rows: Tensor) -> Tensor:
    """Norms [B, 1, ...] of rows [B, ...]."""
    return rows.flatten(1).norm(dim=1).view(-1, *[1] * (rows.ndim - 1))
