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
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import torch

from aapt_fast.errors import CheckpointError
from aapt_fast.progress import progress, say
from aapt_fast.training.files import load_finite, load_module, save_finite, write_csv, write_text
from aapt_fast.training.optimiser import Stateful
from aapt_fast.training.place import UNSHARED, Share
from aapt_fast.training.sharded_files import load_shards, require_same_kind, save_shards

CHECKPOINT = "checkpoint.pt"
CHECKPOINT_SECONDS = 60.0


Stop: TypeAlias = Callable[[], AbstractContextManager[Callable[[], bool]]]


def never_stop() -> AbstractContextManager[Callable[[], bool]]:
    """The `stop` of a run that takes all its steps."""
    return nullcontext(lambda: False)


@dataclass(frozen=True)
class Watch:
    """A person's view of a run, and the way to stop it.

    Args:
        title: of the progress bar; empty: the name of the folder.
        stop: makes the context in which steps are taken; it gives a function that is true if no more are to follow.
    """

    title: str = ""
    stop: Stop = never_stop


UNWATCHED = Watch()


class TrainingRun:
    """A run in a folder of its own: `config.json`, `log.csv`, `checkpoint.pt`, sample sheets.

    On ranks, all of them make the same calls, and `share` is that of the rank. The first one writes log and messages.

    Raises ValueError when the folder holds a run with another configuration, CheckpointError when its checkpoint
    cannot be read, is not finite, does not fit `state`, or is of ranks where this process is none, or vice versa.
    """

    def __init__(
        self,
        folder: Path,
        config: Any,
        state: dict[str, Stateful],
        *,
        watch: Watch = UNWATCHED,
        share: Share = UNSHARED,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
    ) -> None:
        self.folder = folder
        self.share, self._place = share, share.place
        self.step = 0
        self._state, self._watch = state, watch
        self._seconds_before = 0.0
        self._started = self._saved = time.monotonic()
        self._checkpoint_seconds = self._pause = checkpoint_seconds
        self._averages: dict[str, float] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._check_config(config)
        self._resume()

    @property
    def seconds(self) -> float:
        """Training time so far, all sessions together."""
        return self._seconds_before + time.monotonic() - self._started

    def steps(self, total: int, seed: int) -> Iterator[int]:
        """Yield the remaining steps, torch seeded for each; saves when the watch stops it, at the end, and in between.

        That is every minute, or more rarely where saving would take more than a tenth of the time.

        Raises KeyboardInterrupt once it has been stopped and saved.
        """
        title, quiet = self._watch.title or self.folder.name, not self._place.is_first
        with self._watch.stop() as stopped, progress(total, title, "step", done=self.step, quiet=quiet) as bar:
            while self.step < total and not self._place.anywhere(stopped()):
                torch.manual_seed(seed * 1_000_003 + self.step)
                yield self.step
                self.step += 1
                bar.update()
                shown = {name: f"{value:.4g}" for name, value in self._averages.items()}
                bar.set_postfix(shown, refresh=False)
                due = time.monotonic() - self._saved > self._pause
                if self._place.anywhere(due and self._place.is_first):
                    self.save()
            self.save()
            if self._place.anywhere(stopped()):
                raise KeyboardInterrupt(f"stopped after step {self.step} of {total}; {on_disk(self.folder)}")

    def track(self, **values: torch.Tensor) -> None:
        """Note the losses [] of this step, each the mean over own rows, or one that all ranks have.

        Raises FloatingPointError naming loss and step if one is not finite.
        """
        means = self.share.mean(torch.stack([value.detach().float() for value in values.values()]))
        for name, number in zip(values, means.tolist(), strict=True):
            if not math.isfinite(number):
                self.fail(f"{name} is {number}")
            self._averages[name] = 0.97 * self._averages.get(name, number) + 0.03 * number

    def fail(self, reason: str) -> NoReturn:
        """Raise FloatingPointError with the reason, the step, and the state on disk."""
        raise FloatingPointError(f"{reason} at step {self.step} (batch seed {self.step}); {on_disk(self.folder)}")

    def log(self, **values: float) -> None:
        """Append one row to log.csv: step, seconds, averaged losses and `values`.

        There is one row per step: a step that is taken again after a kill replaces its row and those after it.
        """
        if not self._place.is_first:
            return
        row = {"step": self.step, "seconds": round(self.seconds), **self._averages, **values}
        path = self.folder / "log.csv"
        old: list[dict[str, Any]] = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
        rows = [*(each for each in old if int(each["step"]) < self.step), row]
        write_csv(path, rows)
        say("  ".join(f"{key} {value:.4g}" for key, value in row.items()))

    def save(self) -> None:
        """Write checkpoint.pt; a run killed while saving keeps the previous one.

        Raises FloatingPointError naming the first value that is not finite; the previous one is kept then, too.
        """
        content = {
            "step": self.step,
            "seconds": self.seconds,
            "averages": self._averages,
            "state": {name: part.state_dict() for name, part in self._state.items()},
        }
        path, begun = self.folder / CHECKPOINT, time.monotonic()
        try:
            save_finite(path, content) if self._place.transport is None else save_shards(path, content, self._place)
        except FloatingPointError as error:
            self.fail(str(error))
        self._saved = time.monotonic()
        self._pause = self._checkpoint_seconds * max(1.0, 10 * (self._saved - begun) / CHECKPOINT_SECONDS)

    def _check_config(self, config: Any) -> None:
        require_same_config(self.folder, config)
        path = self.folder / "config.json"
        self._place.wait()  # all have looked at the file before it is written
        if self._place.is_first and not path.exists():
            write_text(path, json.dumps(dataclasses.asdict(config), indent=1))

    def _resume(self) -> None:
        path = self.folder / CHECKPOINT
        if not path.exists():
            return
        content = load_finite(path)
        require_same_kind(path, content, self._place)
        try:
            alone = self._place.transport is None
            state = content["state"] if alone else load_shards(path, content, self._place)
            for name, part in self._state.items():
                if alone and isinstance(part, torch.nn.Module):
                    load_module(part, state[name], path)
                else:
                    part.load_state_dict(state[name])
            self.step, self._seconds_before = content["step"], content["seconds"]
            self._averages = content["averages"]
        except CheckpointError:
            raise
        except Exception as error:  # every part has its own kinds
            raise _other_checkpoint(path, error) from error


def require_same_config(folder: Path, config: Any) -> None:
    """Raise ValueError naming the settings if `folder` holds a run with another configuration than `config`."""
    path = folder / "config.json"
    if not path.exists():
        return
    before = _with_newer_fields(json.loads(path.read_text()), config)
    now = json.loads(json.dumps(dataclasses.asdict(config)))
    names = [key for key in before | now if key not in before or key not in now or before[key] != now[key]]
    if names:
        raise ValueError(f"{', '.join(names)}: expected the values in {path}, got others; use a new folder")


def steps_on_disk(folder: Path) -> int:
    """The number of steps taken in the checkpoint of a run, 0 without one. Raises CheckpointError for a bad one."""
    path = folder / CHECKPOINT
    if not path.exists():
        return 0
    content = load_finite(path)
    try:
        return int(content["step"])
    except (KeyError, TypeError, ValueError) as error:
        raise _other_checkpoint(path, error) from error


def _other_checkpoint(path: Path, error: Exception) -> CheckpointError:
    got = f"another one ({type(error).__name__}); remove it, and the stage begins again"
    return CheckpointError(f"{path}: expected a checkpoint of this training, got {got}")


def on_disk(folder: Path) -> str:
    """The state of a run that a later one resumes from, in words; it is read from the file."""
    path = folder / CHECKPOINT
    try:
        steps = steps_on_disk(folder)
    except CheckpointError as error:
        return str(error)
    return f"{path} holds the state after step {steps}, all finite" if path.exists() else f"{folder} has no checkpoint"


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
