# SPDX-License-Identifier: Apache-2.0
"""Trainer: the parts that every stage's loop shares. Batches and losses stay in the stage."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from aapt_fast.progress import say
from aapt_fast.training.ema import WeightAverage
from aapt_fast.training.optimiser import NOTHING_SLOW, MatrixOptimiser, Optimiser, Stateful, descend
from aapt_fast.training.place import UNSHARED, Share
from aapt_fast.training.run import TrainingRun, Watch
from aapt_fast.training.schedule import warm_cosine
from aapt_fast.training.sharded_optimiser import ShardedMatrixOptimiser


class Trainer:
    """A model in training: its optimiser, the average of its weights, and the run that keeps them.

    Args:
        folder: where the run writes.
        config: a dataclass with `steps`, `seed` and `evaluate_every`; without an `optimiser` also `matrix_rate`, `rate`
            and `weight_decay`.
        model: gets its gradients clipped to a norm of 1, and the averaged weights at the end.
        evaluate: gives numbers for the log; called with averaged weights before every `evaluate_every`-th step, and at
            the end.
        watch: of the run.
        optimiser: of the model's parameters, with its full learning rates; None: a `MatrixOptimiser`.
        slow: of that, see there.
        more: other parts of the run's checkpoints, by name.
        average_decay: of the average.
        share: of this rank. The place has put `model` and those of `more` already.
    """

    def __init__(
        self,
        folder: Path,
        config: Any,
        model: nn.Module,
        evaluate: Callable[[], dict[str, float]],
        watch: Watch,
        optimiser: Optimiser | None = None,
        more: Mapping[str, Stateful] | None = None,
        average_decay: float = 0.995,
        share: Share = UNSHARED,
        slow: Mapping[str, float] = NOTHING_SLOW,
    ) -> None:
        place = share.place
        if optimiser is None:
            rates = {name: getattr(config, name) for name in ("matrix_rate", "rate", "weight_decay")}
            if place.mesh is None:
                optimiser = MatrixOptimiser(model, slow=slow, **rates)
            else:
                optimiser = ShardedMatrixOptimiser(model, place, slow=slow, **rates)
        self._config, self._model, self._optimiser, self._evaluate = config, model, optimiser, evaluate
        self._place = place
        self._rates = [group["lr"] for group in optimiser.param_groups]
        self._average = WeightAverage(model, average_decay)
        state: dict[str, Stateful] = {"model": model, "average": self._average, "optimiser": optimiser}
        self.run = TrainingRun(folder, config, state | dict(more or {}), watch=watch, share=share)

    def steps(self) -> Iterator[int]:
        """Yield the remaining steps, evaluated in between; after the last one the model holds the averaged weights."""
        compiles = getattr(self._config, "compile", False) and self._place.compiles
        if compiles and self.run.step < self._config.steps:
            say("the first step compiles the network, without a line in the meantime; it can take some minutes")
        for step in self.run.steps(self._config.steps, self._config.seed):
            if step % self._config.evaluate_every == 0:
                self._log()
            for group, rate in zip(self._optimiser.param_groups, self._rates, strict=True):
                group["lr"] = rate * warm_cosine(step, self._config.steps)
            yield step
        self._log()
        self._place.settle(self._model)
        self._average.copy_to_model()
        self._model.eval()

    def update(self, loss: Tensor) -> None:
        """Take one step down the gradient of `loss`, a scalar [], the mean over own rows."""
        (self.run.share.weight * loss).backward()
        self.apply_gradients()

    def apply_gradients(self) -> None:
        """Take one step with the gradients that have been gathered in this step."""
        self.descend(self._model, self._optimiser, largest_norm=1.0)
        self._average.update(self.run.step)

    def descend(self, model: nn.Module, optimiser: Optimiser, largest_norm: float = math.inf) -> None:
        """Take one step of any network of this run; raises as `descend` does, with the step and the state on disk."""
        self._place.settle(model)
        try:
            descend(model, optimiser, largest_norm)
        except FloatingPointError as error:
            self.run.fail(str(error))

    def _log(self) -> None:
        self._place.settle(self._model)
        with self._average.applied(), self._place.evaluating():
            self.run.log(**self._evaluate())
            self._place.settle(self._model)
