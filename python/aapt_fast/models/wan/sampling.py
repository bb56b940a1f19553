# SPDX-License-Identifier: Apache-2.0
"""A block of frames in a few evaluations over the cached past, as Self-Forcing samples (arXiv 2506.08009).

From noise at the first level, each evaluation predicts the clean block, x0 = x_t - sigma v with sigma = t / 1000; new
noise takes it to the next, lower level: x = (1 - sigma) x0 + sigma noise. What the last evaluation predicts is the
block. One more evaluation of the clean block, at `context_noise`, leaves the keys and values that later blocks see.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from aapt_fast.errors import require, require_shape, require_type
from aapt_fast.models.aapt.generator import shift_time
from aapt_fast.models.wan.layers import WanContext
from aapt_fast.models.wan.transformer import WanTransformer
from aapt_fast.ops.block_cache import Blocks
from aapt_fast.ops.cache import Cache

TIMESTEPS = 1000.0


@dataclass(frozen=True)
class FewStep:
    """How a block is made; the defaults are those of the published Self-Forcing checkpoint.

    steps: falling levels of 1000, not of 1. first_steps: those of the first block of a run, None for `steps`. warp:
    whether `shift` is applied to them, which makes 1000, 937.5, 833.3, 625 of the default. context_noise: level at
    which a finished block is evaluated once more for the cache, 0..1000. blocks: what frames see, None for what the
    model's configuration says.

    Causal-Forcing++ makes a frame in one evaluation, and takes four for the first, of which nothing but the prompt says
    what it is to show: FewStep(steps=(1000,), first_steps=(1000, 750, 500, 250)).

    Raises ValueError for levels that do not fall or lie outside, and a shift that is not positive; TypeError for a
    field of another type.
    """

    steps: tuple[float, ...] = (1000, 750, 500, 250)
    shift: float = 5.0
    warp: bool = True
    context_noise: float = 0.0
    blocks: Blocks | None = None
    first_steps: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        _check_steps("steps", self.steps)
        if self.first_steps is not None:
            _check_steps("first_steps", self.first_steps)
        _require_number("shift", self.shift)
        require(0 < self.shift < math.inf, "shift", "a positive number", self.shift)
        require_type("warp", self.warp, bool)
        _require_number("context_noise", self.context_noise)
        require(0 <= self.context_noise <= TIMESTEPS, "context_noise", "a level in 0..1000", self.context_noise)
        if self.blocks is not None:
            require_type("blocks", self.blocks, Blocks)

    @property
    def levels(self) -> tuple[float, ...]:
        """The timesteps of the evaluations, 0..1000, without the last one for the cache."""
        if not self.warp:
            return tuple(float(step) for step in self.steps)
        steps = torch.tensor(self.steps, dtype=torch.float64) / TIMESTEPS
        return tuple((TIMESTEPS * shift_time(steps, self.shift)).tolist())

    @property
    def first(self) -> FewStep:
        """The schedule of the first block of a run."""
        return dataclasses.replace(self, steps=self.first_steps or self.steps, first_steps=None)

    @property
    def draws(self) -> int:
        """The most noises that a block takes, one per level."""
        return max(len(self.steps), len(self.first_steps or ()))

    @property
    def nfe(self) -> int:
        """Network evaluations per block after the first, the one for the cache included."""
        return len(self.steps) + 1


def _check_steps(argument: str, given: Sequence[float]) -> None:
    require_type(argument, given, tuple, list)
    steps = list(given)
    for step in steps:
        _require_number(argument, step)
    falls = bool(steps) and steps == sorted(set(steps), reverse=True)
    fits = falls and all(0 < step <= TIMESTEPS for step in steps)
    require(fits, argument, "falling levels above 0, up to 1000", tuple(steps))
    require(steps[0] > 1, argument, "falling levels of 1000, as (1000, 750, 500, 250)", f"{tuple(steps)}, in 0..1")


def _require_number(argument: str, value: object) -> None:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{argument}: expected a number, got {value!r}")


def sample_block(
    model: WanTransformer, noise: Sequence[Tensor], context: WanContext, cache: Cache, schedule: FewStep
) -> Tensor:
    """The next block of frames, float32 [B, C, n, h, w]; `cache` moves on by n frames.

    Args:
        model: with as many channels in as out.
        noise: one normal tensor [B, C, n, h, w] per level of the schedule.
        context: of the prompt, from `model.encode_context`.
        cache: holds the frames before; of `model.new_cache`, or in pages.
        schedule: levels and context noise; for the first block of a run, its `first`.

    Raises ValueError for another number or shape of noises.
    """
    levels, channels = schedule.levels, model.config.out_channels
    require(model.config.in_channels == channels, "model", f"{channels} channels in and out", model.config.in_channels)
    require(len(noise) == len(levels), "noise", f"{len(levels)} tensors, one per level", len(noise))
    require_shape("noise", noise[0], "B", channels, "n", "h", "w")
    clean, x = noise[0], noise[0].double()
    for number, (level, fresh) in enumerate(zip(levels, noise, strict=True)):
        require_shape("noise", fresh, *noise[0].shape)
        sigma = level / TIMESTEPS
        if number:
            x = (1 - sigma) * clean.double() + sigma * fresh.double()
        clean = (x - sigma * _velocity(model, x, level, context, cache).double()).float()
    remember(model, clean, context, cache, schedule.context_noise)
    return clean


def remember(
    model: WanTransformer, frames: Tensor, context: WanContext, cache: Cache, context_noise: float = 0.0
) -> None:
    """Take clean frames [B, C, n, h, w] into the cache, as the past of what comes next."""
    _velocity(model, frames, context_noise, context, cache)
    cache.advance(frames.shape[2])


def _velocity(model: WanTransformer, x: Tensor, level: float, context: WanContext, cache: Cache) -> Tensor:
    timestep = torch.full((len(x),), level, dtype=torch.float32, device=x.device)
    return model.velocity(x.float(), timestep, context, cache)
