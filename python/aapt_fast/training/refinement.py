# SPDX-License-Identifier: Apache-2.0
"""Refinement: the teacher reads what the generator has drawn, and its reading is the generator's target.

Where chance decides, the distance to the true frame pulls towards the average of all futures. A reading does not. From
the generated frame and the very noise that it was made of, take the point of level t on the straight line between them;
the teacher, stage 1, predicts the clean frame from there. At a middle t that is a clean picture of what was drawn: of
two halves the one that shows more, without the noise around it. So the generator keeps its own choices and sharpens
them, and no network has to learn exactly where the teacher's many evaluations would have changed from one choice to the
next. The same noise matters: with noise drawn anew the choices lose their hold on it, and the generator slides into few
of them (docs/results/coin.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

from aapt_fast.models.aapt.generator import Generator
from aapt_fast.training.place import UNSHARED, Share
from aapt_fast.training.precision import mixed_precision
from aapt_fast.training.schedule import add_noise


class Reader:
    """A teacher that follows one rollout from its first frame on, at a level t of its own for each row.

    Args:
        teacher: stage 1, of the generator's configuration.
        levels: smallest and largest t [B], which are drawn evenly.
        noise: [B, C, n, h, w], of all frames of the rollout.
        share: of the batch that the rows of `noise` are.
    """

    def __init__(self, teacher: Generator, levels: tuple[float, float], noise: Tensor, share: Share = UNSHARED) -> None:
        smallest, largest = levels
        self.t = smallest + (largest - smallest) * share.own(torch.rand(share.batch(noise)))
        self._teacher, self._noise, self._cache = teacher, noise, teacher.new_cache(*noise.shape[-2:])
        self._frames = 0  # so far

    @torch.no_grad()
    def read(self, frames: Tensor, previous: Tensor, control: Tensor) -> Tensor:
        """The teacher's clean frames [B, C, F, h, w], without gradient, for the next F generated `frames`.

        `previous` [B, C, F, h, w] are the frames before each, control [B, step_channels, F, h, w].
        """
        span = slice(self._frames, self._frames + frames.shape[2])
        self._frames = span.stop
        noised = add_noise(frames, self._noise[:, :, span], self.t)
        with mixed_precision(noised.device):
            return self._teacher(noised, previous, control, self.t, self._cache)
