# SPDX-License-Identifier: Apache-2.0
"""Activation checkpointing: blocks that keep their inputs only, and compute the rest again in the backward pass.

A rollout keeps what every block computed for every frame of a segment: 34 bytes or more per token and channel, without
what attention keeps (Korthikanti et al. 2022, arXiv 2205.05198, section 4). With this it keeps the inputs of each
block, and the keys and values that the cache holds anyway, for a third more work.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aapt_fast.models.aapt.generator import Block


class RecomputedBlock(Block):
    """A `Block` of a generator, recomputed. The second pass sees the cache as it was in the first."""

    def forward(
        self, x: Tensor, update: Tensor | None, gate: Tensor | None, modulation: Tensor, cache: Any, layer: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `Block.forward`, x [B, F, N, d]; `cache` is one with a `moment`."""
        if not torch.is_grad_enabled():
            return super().forward(x, update, gate, modulation, cache, layer)
        to_come, before = [cache], cache.moment(layer)

        def compute(
            x: Tensor, update: Tensor | None, gate: Tensor | None, modulation: Tensor
        ) -> tuple[Tensor, Tensor, Tensor]:
            seen = to_come.pop() if to_come else before.moment(layer)
            return super(RecomputedBlock, self).forward(x, update, gate, modulation, seen, layer)

        return checkpoint(compute, x, update, gate, modulation, use_reentrant=False, preserve_rng_state=False)


def recompute(block: nn.Module) -> None:
    """Make a `Block` a recomputed one; names and weights stay. To be called before its weights are cut."""
    assert type(block) is Block
    block.__class__ = RecomputedBlock
