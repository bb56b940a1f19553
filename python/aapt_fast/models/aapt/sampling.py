# SPDX-License-Identifier: Apache-2.0
"""One autoregressive step: noise -> clean frame in `nfe` evaluations of the generator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aapt_fast.errors import require
from aapt_fast.models.aapt.generator import Generator, shift_time
from aapt_fast.ops.cache import Cache


def timesteps(nfe: int, shift: float) -> Tensor:
    """The levels t_0 = 1 > t_1 > ... > t_nfe = 0 of a step: uniform, then shifted (AAPT section 2.2)."""
    require(nfe >= 1, "nfe", "at least 1 evaluation per step", nfe)
    return shift_time(torch.linspace(1, 0, nfe + 1, dtype=torch.float32), shift)


def sample_frame(
    generator: Generator,
    noise: Tensor,
    recycled: Tensor | None,
    control: Tensor | None,
    caches: Sequence[Cache],
    levels: Tensor | None = None,
) -> Tensor:
    """The next frame [B, C, 1, h, w] from noise and the recycled frame of the same shape, by Euler steps.

    control [B, step_channels, 1, h, w] or None. There is one cache per evaluation: training gives a whole clip one
    timestep, so the frames that evaluation k attends to must have been computed at the same t_k. With one cache this
    is the paper's generator, eps - v(eps). A bidirectional model makes a whole clip [B, C, F, h, w] in this way, with
    recycled None and one whole_clip_cache per evaluation. `levels` are the `timesteps` [nfe + 1] on the device of the
    noise, for callers that have them there already.
    """
    if levels is None:
        levels = timesteps(len(caches), generator.config.shift).to(noise.device)
    x = noise
    for k, cache in enumerate(caches):
        t = levels[k].expand(len(noise))
        clean = generator(x, recycled, control, t, cache)
        if k + 1 < len(caches):
            velocity = (x - clean) / levels[k]
            x = x + (levels[k + 1] - levels[k]) * velocity
    return clean
