# SPDX-License-Identifier: Apache-2.0
"""A block of frames in a few evaluations over the cached past, as Self-Forcing samples (arXiv 2506.08009).

From noise at the first level, each evaluation predicts the clean block, x0 = x_t - sigma v with sigma = t / 1000; new
noise takes it to the next, lower level: x = (1 - sigma) x0 + sigma noise. The prediction of the last evaluation is the
block. One more evaluation of the clean block, at `context_noise`, leaves the keys and values that later blocks see.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from aapt_fast.errors import require, require_shape, require_type
from aapt_fast.models.aapt.sampling import shift_time
from aapt_fast.models.sampling import Prepared, Sampler, TakenStep
from aapt_fast.models.wan.layers import WanContext
from aapt_fast.ops.cache import Cache
from aapt_fast.ops.window import WindowRule

TIMESTEPS = 1000.0


@dataclass(frozen=True)
class FewStepSampler(Sampler):
    """Blocks of frames in a few evaluations, for Wan transformers; the defaults are those of Self-Forcing.

    A frame takes one noise per level. Causal-Forcing++ uses one evaluation per frame, and four for the first, which has
    no past frames: FewStepSampler(steps=(1000,), first_steps=(1000, 750, 500, 250)).

    Args:
        steps: falling levels of 1000, not of 1.
        shift: warp of the levels.
        warp: True applies `shift`, which makes 1000, 937.5, 833.3, 625 of the default.
        context_noise: level at which a finished block is evaluated once more for the cache, 0..1000.
        window: frames that a step makes and sees; None for those of the model's configuration.
        first_steps: levels of the first block of a run; None for `steps`.

    Raises:
        ValueError: levels that do not fall or lie outside, or a shift that is not positive.
        TypeError: a field of another type.
    """

    steps: tuple[float, ...] = (1000, 750, 500, 250)
    shift: float = 5.0
    warp: bool = True
    context_noise: float = 0.0
    window: WindowRule | None = None
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
        if self.window is not None:
            require_type("window", self.window, WindowRule)

    def levels(self, first: bool = False) -> tuple[float, ...]:
        """Timesteps of the evaluations, 0..1000, without the one for the cache; `first`: of a run's first block."""
        steps = self.first_steps if first and self.first_steps else self.steps
        if not self.warp:
            return tuple(float(step) for step in steps)
        shifted = shift_time(torch.tensor(steps, dtype=torch.float64) / TIMESTEPS, self.shift)
        return tuple((TIMESTEPS * shifted).tolist())

    @property
    def draws(self) -> int:
        """Most noises that a frame takes, one per level."""
        return max(len(self.steps), len(self.first_steps or ()))

    @property
    def nfe(self) -> int:
        """Network evaluations per block after the first, the one for the cache included."""
        return len(self.steps) + 1

    @property
    def begins_differently(self) -> bool:
        """True with `first_steps`."""
        return self.first_steps is not None

    def check(self, generator: Any) -> None:
        """Raise ValueError for a generator that is no Wan transformer, or takes more than the frames."""
        fits = hasattr(generator, "velocity")
        expected = f"{type(generator.default_sampler()).__name__}, or another for this generator"
        require(fits, "sampler", expected, f"FewStepSampler, {type(generator.config).__name__}")
        channels, got = generator.config.out_channels, generator.config.in_channels
        require(got == channels, "model", f"a generator with {channels} channels in and out", f"{got} in")

    def rule(self, generator: Any) -> WindowRule:
        """`window`, or the rule of the generator's configuration."""
        return self.window or generator.config.window_rule

    def prepare(self, generator: Any, prompt: Tensor | None) -> Prepared:
        """Keys and values of the cross-attention for a prompt [1, L, text_width]. They take no pages."""
        return Prepared([None], generator.encode_context(prompt))

    def join(self, contexts: Sequence[WanContext]) -> WanContext:
        """One context whose rows are those of `contexts`."""
        return contexts[0] if len(contexts) == 1 else WanContext.join(contexts)

    def remember(self, generator: Any, image: Tensor, context: Any, caches: Sequence[Cache]) -> None:
        """Take clean frames [B, C, n, h, w] into the cache, as the past of the next block."""
        self._velocity(generator, image, self.context_noise, context, caches[0])
        caches[0].advance(image.shape[2])

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
        """See `Sampler.sample`: noise [draws, B, C, n, h, w] -> the next block [B, C, n, h, w]."""
        levels = self.levels(first)
        require(len(noise) >= len(levels), "noise", f"{len(levels)} tensors, one per level", len(noise))
        require_shape("noise", noise[0], "B", generator.config.out_channels, "n", "h", "w")
        clean, x = noise[0], noise[0].double()
        for number, level in enumerate(levels):
            sigma = level / TIMESTEPS
            if number:
                x = (1 - sigma) * clean.double() + sigma * noise[number].double()
            clean = (x - sigma * self._velocity(generator, x, level, context, caches[0]).double()).float()
        self.remember(generator, clean, context, caches)
        return clean

    def recompute(self, generator: Any, taken: TakenStep, context: Any, caches: Sequence[Cache]) -> None:
        """See `Sampler.recompute`. The keys of a block are those of its clean frames."""
        self.remember(generator, taken.frames, context, caches)

    @staticmethod
    def _velocity(generator: Any, x: Tensor, level: float, context: WanContext, cache: Cache) -> Tensor:
        timestep = torch.full((len(x),), level, dtype=torch.float32, device=x.device)
        return generator.velocity(x.float(), timestep, context, cache)


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
