# SPDX-License-Identifier: Apache-2.0
"""The control of every step of a run, so that it can be taken again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class ControlLog:
    """Values of the controls of a run's steps, on the host."""

    def __init__(self) -> None:
        self._values: list[Tensor] = []
        self._alone: list[bool] = []

    def add(self, step: int, values: Sequence[Tensor], alone: bool) -> None:
        """Note the control of step number `step`, the steps after which have been undone, if there were any.

        `values` has the float32 [entries, J, 3] or [entries, C, h, w] of the step, or nothing for a model without
        control; `alone` is False for a step in a batch of several sessions.
        """
        del self._alone[step - 1 :], self._values[step - 1 :]
        self._alone.append(alone)
        self._values += [each.to("cpu", copy=True) for each in values]

    def taken(self, steps: int) -> tuple[Tensor | None, bool]:
        """Controls [n, entries, ...] of the first `steps` steps, None without any, and whether all were taken alone."""
        values = self._values[:steps]
        return torch.stack(values) if values else None, all(self._alone[:steps])

    def fork(self) -> ControlLog:
        """The same so far, for another session."""
        other = ControlLog()
        other._values, other._alone = list(self._values), list(self._alone)
        return other
