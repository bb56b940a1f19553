# SPDX-License-Identifier: Apache-2.0
"""Training runs: the folder, the log, the checkpoints, and stopping without losing anything.

Randomness is drawn anew at every step from (seed, step), so a resumed run takes the identical next step without any
generator state in the checkpoint.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm

from aapt_fast.errors import CheckpointError
from aapt_fast.models.files.atomic import replacing
from aapt_fast.training.csv_file import write_csv


class Stateful(Protocol):
    """A part of a checkpoint: a module, an optimiser, an average."""

    def state_dict(self) -> dict[str, Any]:
        """The state, as torch saves it."""

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Take over a state of `state_dict`."""


class TrainingRun:
    """A run in a folder of its own: `config.json`, `log.csv`, `checkpoint.pt`, sample sheets.

    Raises ValueError when the folder holds a run with another configuration, CheckpointError when its checkpoint
    cannot be read or does not fit `state`.
    """

    def __init__(
        self, folder: Path, config: Any, state: dict[str, Stateful], *, checkpoint_seconds: float = 60
    ) -> None:
        self.folder = folder
        self.step = 0
        self._state = state
        self._seconds_before = 0.0
        self._started = self._saved = time.monotonic()
        self._checkpoint_seconds = checkpoint_seconds
        self._stop = False
        self._averages: dict[str, float] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._check_config(config)
        self._resume()

    @property
    def seconds(self) -> float:
        """Training time so far, all sessions together."""
        return self._seconds_before + time.monotonic() - self._started

    def steps(self, total: int, seed: int) -> Iterator[int]:
        """Yield the remaining steps, torch seeded for each; saves every minute, on SIGTERM, Ctrl-C and at the end.

        The first signal is obeyed after the step, a second one at once, with the last checkpoint intact.
        """
        handlers = {kind: signal.signal(kind, self._ask_to_stop) for kind in (signal.SIGTERM, signal.SIGINT)}
        try:
            with tqdm(total=total, initial=self.step, desc=self.folder.name, mininterval=2) as progress:
                while self.step < total and not self._stop:
                    torch.manual_seed(seed * 1_000_003 + self.step)
                    yield self.step
                    self.step += 1
                    progress.update()
                    shown = {name: f"{value:.4g}" for name, value in self._averages.items()}
                    progress.set_postfix(shown, refresh=False)
                    if time.monotonic() - self._saved > self._checkpoint_seconds:
                        self.save()
            self.save()
        finally:
            for kind, handler in handlers.items():
                signal.signal(kind, handler)
        if self._stop:
            raise KeyboardInterrupt(f"stopped at step {self.step}, saved in {self.folder}")

    def track(self, **values: torch.Tensor) -> None:
        """Note the losses of this step; raises FloatingPointError naming loss and step if one is not finite."""
        for name, value in values.items():
            number = float(value.detach())
            if not math.isfinite(number):
                raise FloatingPointError(
                    f"{name} is {number} at step {self.step} (batch seed {self.step}); "
                    f"the last checkpoint in {self.folder} is intact"
                )
            self._averages[name] = 0.97 * self._averages.get(name, number) + 0.03 * number

    def log(self, **values: float) -> None:
        """Append one row to log.csv: step, seconds, averaged losses and `values`.

        There is one row per step: a step that is taken again after a kill replaces its row and those after it.
        """
        row = {"step": self.step, "seconds": round(self.seconds), **self._averages, **values}
        path = self.folder / "log.csv"
        old: list[dict[str, Any]] = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
        rows = [*(each for each in old if int(each["step"]) < self.step), row]
        write_csv(path, rows)
        tqdm.write("  ".join(f"{key} {value:.4g}" for key, value in row.items()))

    def save(self) -> None:
        """Write checkpoint.pt; a run killed while saving keeps the previous one."""
        content = {
            "step": self.step,
            "seconds": self.seconds,
            "averages": self._averages,
            "state": {name: part.state_dict() for name, part in self._state.items()},
        }
        with replacing(self.folder / "checkpoint.pt") as partial:
            torch.save(content, partial)
        self._saved = time.monotonic()

    def _check_config(self, config: Any) -> None:
        path = self.folder / "config.json"
        text = json.dumps(dataclasses.asdict(config), indent=1)
        if not path.exists():
            with replacing(path) as partial:
                partial.write_text(text)
            return
        before, now = _with_newer_fields(json.loads(path.read_text()), config), json.loads(text)
        names = [key for key in before | now if key not in before or key not in now or before[key] != now[key]]
        if names:
            raise ValueError(f"{', '.join(names)}: expected the values in {path}, got others; use a new folder")

    def _resume(self) -> None:
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return
        try:
            content = torch.load(path, weights_only=True)
            for name, part in self._state.items():
                part.load_state_dict(content["state"][name])
            self.step, self._seconds_before = content["step"], content["seconds"]
            self._averages = content["averages"]
        except Exception as error:
            got = f"{type(error).__name__}: {error}"
            raise CheckpointError(f"{path}: expected a readable checkpoint of this training, got {got}") from error

    def _ask_to_stop(self, *_: object) -> None:
        if self._stop:
            raise KeyboardInterrupt(f"stopped in step {self.step}; {self.folder} holds the last checkpoint")
        self._stop = True


def _with_newer_fields(written: Any, config: Any) -> Any:
    """The configuration that was `written`, with the defaults of all fields of `config` that are newer."""
    if not isinstance(written, dict) or not dataclasses.is_dataclass(config):
        return written
    completed = dict(written)
    for field in dataclasses.fields(config):
        if field.name in written:
            completed[field.name] = _with_newer_fields(written[field.name], getattr(config, field.name))
        elif field.default is not dataclasses.MISSING:
            completed[field.name] = json.loads(json.dumps(field.default, default=dataclasses.asdict))
    return completed
