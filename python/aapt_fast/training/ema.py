# SPDX-License-Identifier: Apache-2.0
"""Exponential moving average of weights, with a warm-up so that the start does not dominate early averages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from aapt_fast.training.place import own_part


class WeightAverage:
    """Keeps an average of the parameters of `model`, cut as they are; `applied()` swaps it in for an evaluation."""

    def __init__(self, model: nn.Module, decay: float = 0.995) -> None:
        self._parameters = dict(model.named_parameters())
        self._decay = decay
        self.average = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the weights after update number `step` (0-based)."""
        decay = min(self._decay, (step + 1) / (step + 10))
        for name, parameter in self._parameters.items():
            own_part(self.average[name]).lerp_(own_part(parameter), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the model holds the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():  # by values: FSDP2 knows weights by their memory
            before = parameter.clone()
            parameter.copy_(self.average[name])
            self.average[name].copy_(before)

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Overwrite the weights of the model with their average."""
        for name, parameter in self._parameters.items():
            parameter.copy_(self.average[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by the names of the parameters."""
        return self.average

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over the averages of `state_dict`."""
        for name, value in self.average.items():
            value.copy_(state[name])
