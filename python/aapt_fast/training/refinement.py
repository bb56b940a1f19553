# SPDX-License-Identifier: Apache-2.0
"""Refinement: the teacher finishes what the generator has drawn, and what it makes of it is the generator's target.

Where chance decides, the distance to the true frame pulls towards the average of all futures. A reading does not. From
the generated frame and the very noise that it was made of, take the point of level t on the straight line between them;
the teacher, stage 1, goes on from there to a clean frame by a few Euler steps. From a middle t that is a clean picture
of what was drawn: of two halves the one that shows more, without the noise around it. So the generator keeps its own
choices and sharpens them, and no network has to learn exactly where the teacher's many evaluations would have changed
from one choice to the next. The same noise matters: with noise drawn anew the choices lose their hold on it, and the
generator slides into few of them (docs/results/coin.md).

The teacher follows its own readings, not the generated frames. So the target stays clean when a rollout has lost its
way, and the generator learns to come back.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aapt_fast.models.aapt.generator import Generator
from aapt_fast.training.place import UNSHARED, Share
from aapt_fast.training.precision import mixed_precision
from aapt_fast.training.schedule import add_noise


class Reader:
    """A teacher that follows one rollout from its first frame on, from a level t of its own for each row.

    Args:
        teacher: stage 1, of the generator's configuration.
        levels: smallest and largest t [B], which are drawn evenly.
        evaluations: of the teacher for each frame, at levels of equal distance from t on.
        noise: [B, C, n, h, w], of all frames of the rollout.
        image: [B, C, 1, h, w], the true frame before the first.
        share: of the batch that the rows of `noise` are.
    """

    def __init__(
        self,
        teacher: Generator,
        levels: tuple[float, float],
        evaluations: int,
        noise: Tensor,
        image: Tensor,
        share: Share = UNSHARED,
    ) -> None:
        smallest, largest = levels
        self.t = smallest + (largest - smallest) * share.own(torch.rand(share.batch(noise)))
        self._teacher, self._noise, self._before = teacher, noise, image
        self._caches = [teacher.new_cache(*noise.shape[-2:]) for _ in range(evaluations)]
        self._frames = 0  # so far

    @torch.no_grad()
    def read(self, frames: Tensor, control: Tensor) -> Tensor:
        """The teacher's clean frames [B, C, F, h, w], without gradient, for the next F generated `frames`.

        control [B, step_channels, F, h, w].
        """
        return torch.cat([self._next(*each) for each in zip(frames.split(1, 2), control.split(1, 2), strict=True)], 2)

    def _next(self, frame: Tensor, control: Tensor) -> Tensor:
        """The reading of one frame [B, C, 1, h, w]."""
        x = add_noise(frame, self._noise[:, :, self._frames, None], self.t)
        clean, count = x, len(self._caches)
        for number, cache in enumerate(self._caches):
            left = count - number  # steps, each from t left / count to t (left - 1) / count
            with mixed_precision(x.device):
                clean = self._teacher(x, self._before, control, self.t * left / count, cache).to(x.dtype)
            x = clean + (left - 1) / left * (x - clean)
        self._frames, self._before = self._frames + 1, clean
        return clean
