# SPDX-License-Identifier: Apache-2.0
"""AAPT's sampler: one frame per step, from noise and the recycled frame, in one or more evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aapt_fast.errors import require, require_type
from aapt_fast.models.aapt.config import GeneratorConfig
from aapt_fast.models.evaluations import MOST_EVALUATIONS
from aapt_fast.models.sampling import Prepared, Sampler, TakenStep
from aapt_fast.ops.cache import Cache


def shift_time(u: Tensor, shift: float) -> Tensor:
    """The timestep schedule's warp, shift u / (1 + (shift - 1) u), for u [...] in 0..1 (AAPT section 2.2)."""
    return shift * u / (1 + (shift - 1) * u)


def timesteps(num_inference_steps: int, shift: float) -> Tensor:
    """The levels t_0 = 1 > t_1 > ... > t_n = 0 of a step: uniform, then shifted (AAPT section 2.2)."""
    require(num_inference_steps >= 1, "num_inference_steps", "at least 1 evaluation per step", num_inference_steps)
    return shift_time(torch.linspace(1, 0, num_inference_steps + 1, dtype=torch.float32), shift)


def levels_of(config: GeneratorConfig, num_inference_steps: int) -> Tensor:
    """Levels [2, n + 1] of a step in n evaluations, float32: the learned grid of a generator's `config`, if it has one.

    Row 0 are the levels between which Euler steps lead, row 1 those that the network is told, and a 0.
    """
    for grid in config.grids:
        if grid.evaluations == num_inference_steps:
            return torch.tensor([grid.solver, (*grid.network, 0.0)], dtype=torch.float32)
    return timesteps(num_inference_steps, config.shift).expand(2, -1).contiguous()


@dataclass(frozen=True)
class EulerSampler(Sampler):
    """One frame per step in `num_inference_steps` Euler steps; 1 is what AAPT trains for.

    A generator with a learned grid for this number of steps is evaluated at its levels, any other at `timesteps`.

    Every evaluation has a cache of its own: training gives a whole clip one timestep, so the frames that evaluation k
    attends to must have been computed at the same t_k. For AAPT generators.

    Raises TypeError for another type, ValueError for less than 1 or more than `MOST_EVALUATIONS`.
    """

    num_inference_steps: int = 1

    def __post_init__(self) -> None:
        require_type("num_inference_steps", self.num_inference_steps, int)
        fits = 1 <= self.num_inference_steps <= MOST_EVALUATIONS
        expected = f"1 to {MOST_EVALUATIONS} evaluations per step"
        require(fits, "num_inference_steps", expected, self.num_inference_steps)

    @property
    def caches(self) -> int:
        """One per evaluation."""
        return self.num_inference_steps

    @property
    def nfe(self) -> int:
        """Network evaluations per step."""
        return self.num_inference_steps

    def check(self, generator: Any) -> None:
        """Raise ValueError for a generator that is not AAPT's, or not autoregressive."""
        fits = hasattr(generator.config, "autoregressive")
        expected = f"{type(generator.default_sampler()).__name__}, or another for this generator"
        require(fits, "sampler", expected, f"EulerSampler, {type(generator.config).__name__}")
        expected = "an autoregressive generator; to_autoregressive makes one"
        require(generator.config.autoregressive, "model", expected, "a bidirectional one")

    def prepare(self, generator: Any, prompt: Tensor | None) -> Prepared:
        """Text keys and values at the timestep of every evaluation, for a prompt [1, L, text_width] or None."""
        levels = levels_of(generator.config, self.num_inference_steps).to(generator.weight.device)
        text = [None if prompt is None else generator.encode_text(prompt, level[None]) for level in levels[1, :-1]]
        return Prepared(text, levels)

    def sample(
        self,
        generator: Any,
        noise: Tensor,
        recycled: Tensor | None,
        control: Tensor | None,
        context: Any,
        caches: Sequence[Cache],
        first: bool,
    ) -> Tensor:
        """See `Sampler.sample`: noise [1, B, C, 1, h, w] -> the next frame [B, C, 1, h, w], by Euler steps.

        `context` holds the levels [2, num_inference_steps + 1] of `levels_of` on the device of the noise.
        """
        x, (levels, told) = noise[0], context
        for k, cache in enumerate(caches):
            clean = generator(x, recycled, control, told[k].expand(len(x)), cache)
            if k + 1 < len(caches):
                velocity = (x - clean) / levels[k]
                x = x + (levels[k + 1] - levels[k]) * velocity
        return clean

    def recompute(self, generator: Any, taken: TakenStep, context: Any, caches: Sequence[Cache]) -> None:
        """See `Sampler.recompute`. A frame's keys are those of its own evaluations, from its noise and its inputs."""
        self.sample(generator, taken.noise, taken.recycled, taken.control, context, caches, taken.first)


def sample_frame(
    generator: Any, noise: Tensor, recycled: Tensor | None, control: Tensor | None, caches: Sequence[Cache]
) -> Tensor:
    """The next frame [B, C, 1, h, w] from noise and the recycled frame of the same shape, one evaluation per cache.

    control [B, step_channels, 1, h, w] or None. With one cache this is the paper's generator, eps - v(eps). A
    bidirectional model makes a whole clip [B, C, F, h, w] in this way, with recycled None and a whole_clip_cache per
    evaluation.
    """
    levels = levels_of(generator.config, len(caches)).to(noise.device)
    return EulerSampler(len(caches)).sample(generator, noise[None], recycled, control, levels, caches, first=False)
