# SPDX-License-Identifier: Apache-2.0
"""The base of all samplers: the way in which a generator makes the frames of a step.

A sampler is a value that any number of sessions share. It holds no state of a stream: frames come from noise, the
recycled frame, the control, and caches with the past. `StreamSession(model, sampler=...)` takes any subclass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aapt_fast.errors import require, require_type
from aapt_fast.ops.cache import Cache, KeysAndValues
from aapt_fast.ops.window import WindowRule


@dataclass(frozen=True)
class Prepared:
    """Everything about a prompt and a device that is computed once per run."""

    text: Sequence[Sequence[KeysAndValues] | None]
    """Per cache, and there per layer, the normalised keys and values [1, L, Hkv, D] of the prompt; None: no text."""
    context: Any = None
    """Passed to `Sampler.sample` as it is."""


@dataclass(frozen=True)
class TakenStep:
    """A step of one session that has been taken: arguments of `Sampler.sample`, and the frames that were shown."""

    frames: Tensor
    """[1, C, n, h, w]."""
    noise: Tensor
    """[draws, 1, C, n, h, w]."""
    recycled: Tensor | None
    """[1, C, 1, h, w]."""
    control: Tensor | None
    """[1, step_channels, 1, h, w]."""
    first: bool


class Sampler:
    """Base class: one evaluation per step over one cache, without text. A subclass overrides at least `sample`.

    See docs/how-to/add-a-sampler.md.
    """

    @property
    def caches(self) -> int:
        """Caches of a session."""
        return 1

    @property
    def draws(self) -> int:
        """Most noises that a frame takes."""
        return 1

    @property
    def nfe(self) -> int:
        """Network evaluations per step."""
        return 1

    @property
    def begins_differently(self) -> bool:
        """True if the first step of a run is another computation than the others."""
        return False

    def check(self, generator: Any) -> None:
        """Raise ValueError for a generator that this sampler cannot evaluate."""

    def rule(self, generator: Any) -> WindowRule:
        """Frames that a step makes and sees."""
        return generator.config.window_rule

    def prepare(self, generator: Any, prompt: Tensor | None) -> Prepared:
        """Compute what holds for a whole run under a prompt [1, L, text_width]."""
        require(prompt is None, "prompt", f"None: {type(self).__name__} takes no text", "a prompt")
        return Prepared([None] * self.caches)

    def join(self, contexts: Sequence[Any]) -> Any:
        """The `Prepared.context` of a batch from those of its rows, of which there is at least one."""
        return contexts[0]

    def remember(self, generator: Any, image: Tensor, context: Any, caches: Sequence[Cache]) -> None:
        """Write the latent frame of the image [1, C, 1, h, w] to the caches, for a model that sees it there."""

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
        """The frames of a step, float32 [B, C, n, h, w]; the caches move on by n frames.

        Args:
            generator: a `VideoGenerator` of the kind that `check` lets pass.
            noise: [draws, B, C, n, h, w], normal.
            recycled: [B, C, 1, h, w], the newest frame; None while there is none.
            control: [B, step_channels, 1, h, w], or None for a generator without.
            context: from `prepare`, or `join` for several rows.
            caches: `caches` of them, for B rows.
            first: True in the first step of a run.
        """
        raise NotImplementedError

    def recompute(self, generator: Any, taken: TakenStep, context: Any, caches: Sequence[Cache]) -> None:
        """Write the keys and values of a step that has been `taken` again, under the prompt of another `context`.

        The caches move on by its n frames, which stay as they were shown. A session refuses
        `set_prompt(policy="recompute")` with a sampler that does not override it.
        """
        raise NotImplementedError


def require_sampler(sampler: object) -> None:
    """Raise TypeError unless `sampler` is an object of a subclass of `Sampler` that overrides `sample`."""
    require_type("sampler", sampler, Sampler)
    assert isinstance(sampler, Sampler)
    if type(sampler).sample is Sampler.sample:
        kind = type(sampler).__name__
        raise TypeError(f"sampler: expected an object of a subclass of Sampler with a method sample, got {kind}")


def noise_numbers(first_frame: int, frames: int, draws: int) -> Tensor:
    """Philox step numbers of the noises of `frames` frames from `first_frame` on, int64 [draws, frames].

    Frame f, counted from 1, takes number (f - 1) draws + k + 1 in evaluation k.
    """
    frame = torch.arange(first_frame - 1, first_frame - 1 + frames)
    return frame * draws + torch.arange(1, draws + 1)[:, None]
