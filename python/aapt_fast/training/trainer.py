# SPDX-License-Identifier: Apache-2.0
"""Trainer: the parts that every stage's loop shares. Batches and losses stay in the stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from aapt_fast.training.ema import WeightAverage
from aapt_fast.training.optimiser import MatrixOptimiser
from aapt_fast.training.run import Stateful, TrainingRun


class Optimiser(Stateful, Protocol):
    """The part of a torch optimiser that a step needs."""

    def zero_grad(self) -> None:
        """Forget the gradients."""

    def step(self) -> Any:
        """Move the parameters down their gradients."""


class Trainer:
    """A model in training: its optimiser, the average of its weights, and the run that keeps them.

    Args:
        folder: where the run writes.
        config: a dataclass with `steps`, `seed` and `evaluate_every`.
        model: gets its gradients clipped to a norm of 1, and the averaged weights at the end.
        optimiser: of the model's parameters.
        evaluate: gives numbers for the log; called with averaged weights before every `evaluate_every`-th step, and at
            the end.
        more: other parts of the run's checkpoints, by name.
        average_decay: of the average.
    """

    def __init__(
        self,
        folder: Path,
        config: Any,
        model: nn.Module,
        optimiser: Optimiser,
        evaluate: Callable[[], dict[str, float]],
        more: Mapping[str, Stateful] | None = None,
        average_decay: float = 0.995,
    ) -> None:
        self._config, self._model, self._optimiser, self._evaluate = config, model, optimiser, evaluate
        self._average = WeightAverage(model, average_decay)
        state: dict[str, Stateful] = {"model": model, "average": self._average, "optimiser": optimiser}
        self.run = TrainingRun(folder, config, state | dict(more or {}))

    def steps(self) -> Iterator[int]:
        """Yield the remaining steps, evaluated in between; after the last one the model holds the averaged weights."""
        for step in self.run.steps(self._config.steps, self._config.seed):
            if step % self._config.evaluate_every == 0:
                self._log()
            yield step
        self._log()
        self._average.copy_to_model()
        self._model.eval()

    def update(self, loss: Tensor) -> None:
        """Take one step down the gradient of `loss`, a scalar []."""
        self._optimiser.zero_grad()
        loss.backward()
        self.apply_gradients()

    def apply_gradients(self) -> None:
        """Take one step with the gradients that have been gathered since the optimiser's `zero_grad`."""
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimiser.step()
        self._average.update(self.run.step)

    def _log(self) -> None:
        with self._average.applied():
            self.run.log(**self._evaluate())


def matrix_optimiser(model: nn.Module, config: Any) -> MatrixOptimiser:
    """The optimiser of a generator, with `matrix_rate`, `rate` and `weight_decay` of a stage's configuration."""
    return MatrixOptimiser(model, matrix_rate=config.matrix_rate, rate=config.rate, weight_decay=config.weight_decay)
