# SPDX-License-Identifier: Apache-2.0
"""The control of every step of a run, so that it can be taken again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

STEPS = 512
"""Steps per block. A small tensor for every step would lie for good among the large ones that steps make and free, and
split the places where these could have been made again: a server grew by 20 MB a minute and stream."""


class ControlLog:
    """Values of the controls of a run's steps, on the host, in blocks of many steps."""

    def __init__(self) -> None:
        self._blocks: list[Tensor] = []  # [STEPS, entries, ...]
        self._alone: list[bool] = []

    def add(self, step: int, values: Sequence[Tensor], alone: bool) -> None:
        """Note the control of step number `step`, the steps after which have been undone, if there were any.

        `values` has the float32 [entries, J, 3] or [entries, C, h, w] of the step, or nothing for a model without
        control; `alone` is False for a step in a batch of several sessions.
        """
        del self._alone[step - 1 :]
        self._alone.append(alone)
        block, place = divmod(step - 1, STEPS)
        with torch.inference_mode(False), torch.no_grad():
            for each in values:
                if block == len(self._blocks):
                    self._blocks.append(torch.empty(STEPS, *each.shape, dtype=each.dtype))
                self._blocks[block][place].copy_(each)

    def taken(self, steps: int) -> tuple[Tensor | None, bool]:
        """Controls [n, entries, ...] of the first `steps` steps, None without any, and whether all were taken alone."""
        values = torch.cat(self._blocks)[:steps] if self._blocks and steps else None
        return values, all(self._alone[:steps])

    def fork(self) -> ControlLog:
        """The same so far, for another session."""
        other = ControlLog()
        with torch.inference_mode(False):
            other._blocks = [block.clone() for block in self._blocks]
        other._alone = list(self._alone)
        return other
