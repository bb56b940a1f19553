# SPDX-License-Identifier: Apache-2.0
"""One stream of an engine: its viewers and controls, for any thread, and its state for the engine's."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor

from aapt_fast.errors import SessionClosed, require
from aapt_fast.models.stream_model import ImageLike, StreamModel
from aapt_fast.not_copied import NotCopied
from aapt_fast.streaming.controls import ControlSource, model_values
from aapt_fast.streaming.session import StreamSession
from aapt_fast.worlds.world import FirstFrame

T = TypeVar("T")


class Engine(Protocol):
    """The part of a `StreamEngine` that its streams use."""

    model: StreamModel
    clock: Callable[[], float]
    _changed: threading.Condition

    def _run(self, command: Callable[..., T], *arguments: Any) -> Future[T]:
        """Let the engine's thread call `command` between two steps."""

    def _fork(self, origin: EngineStream, source: ControlSource | None) -> EngineStream:
        """Another stream that goes on from here."""

    def _park(self, stream: EngineStream) -> None:
        """Move its state to a file."""

    def _unpark(self, stream: EngineStream) -> None:
        """Move it back."""

    def _end(self, stream: EngineStream, why: str) -> None:
        """End it, and give back its place."""


@dataclass(frozen=True)
class Shown:
    """The video of one step, as viewers get it."""

    step: int
    """Number of the step, from 1 on."""
    video: Tensor
    """uint8 [F, H, W, 3], complete."""
    control: int
    """Number of the control that the step obeyed: 0 for that of the first frame, else what `control` returned."""
    begun: float
    """Time of the engine's clock, in seconds, when the step began."""
    done: float
    """Likewise, when its video was there."""


Viewer = Callable[[Shown], None]


class EngineStream(NotCopied):
    """One stream of a `StreamEngine`, for any thread. `StreamEngine.open` and `fork` make it.

    Methods that need the engine's thread return a `Future`; `result()` waits for it, and raises what went wrong.
    """

    no_copy = "stream: it cannot be copied or pickled; fork() continues it"

    def __init__(self, engine: Engine, number: int) -> None:
        self._engine, self.number = engine, number
        self._viewers: list[Viewer] = []
        self._told_of_end: list[Callable[[str], None]] = []
        self._session: StreamSession | None = None
        self._file: Path | None = None  # while it is parked
        self._source: ControlSource | None = None
        self._control: tuple[int, object] | None = None  # number and values; the latest wins
        self._numbers = itertools.count(1)
        self._single = 0  # steps to take although it is paused
        self.paused = False
        """True between `pause` and `resume`."""
        self.ended: str | None = None
        """The reason why the stream is over; None while it is not."""
        self.due = 0.0
        """Time of the engine's clock, in seconds, at which its next step may begin."""
        self.idle_since = 0.0
        """Time of the last step, or of `pause`."""
        self.late = 0
        """Steps that began more than a latent period after they were due."""

    def __repr__(self) -> str:
        state = self.ended or ("parked" if self.parked else "paused" if self.paused else "running")
        return f"EngineStream({self.number}, steps taken: {self.steps}, {state})"

    @property
    def parked(self) -> bool:
        """True while the stream is in a file and has no place on the device."""
        return self._file is not None

    @property
    def steps(self) -> int:
        """Steps taken since its start."""
        return 0 if self._session is None else self._session.steps

    @property
    def oldest_step(self) -> int:
        """The earliest step that `rewind` can go back to; that of now without a history."""
        return self.steps if self._session is None or self.parked else self._session.oldest_step

    def watch(self, viewer: Viewer) -> Callable[[], None]:
        """Call `viewer` with the `Shown` of every step from now on, in the engine's thread; so it has to be quick.

        Any number of viewers may watch. One that raises is taken off. Returns a function that takes it off.
        """
        viewers = self._viewers
        viewers.append(viewer)
        return lambda: viewers.remove(viewer) if viewer in viewers else None

    def tell_of_end(self, told: Callable[[str], None]) -> None:
        """Call `told` with the reason once the stream is over, in the engine's thread."""
        self._told_of_end.append(told)

    def follow(self, source: ControlSource) -> Future[None]:
        """Take the controls of the steps from now on from `source.next(4)`, until `control` is called."""
        return self._engine._run(self._set_source, source)

    def control(self, values: object) -> int:
        """Set the control of the next step and of those after it, as `StreamSession.step` takes it; the latest wins.

        Any number of controllers may set it. Returns its number, which `Shown.control` repeats from the first step on
        that obeys it. Raises TypeError and ValueError for a bad one, at once, and SessionClosed for a stream that has
        ended; the stream goes on as before.
        """
        self._require_running()
        model_values(values, self._engine.model)
        number = next(self._numbers)
        with self._engine._changed:
            if self._source is None and self._control is None:  # it has waited for this one
                self.due = max(self.due, self._engine.clock())
            self._source, self._control = None, (number, values)
            self._engine._changed.notify()
        return number

    def pause(self) -> Future[None]:
        """Take no more steps until `resume`."""
        return self._engine._run(self._set_paused, True)

    def resume(self) -> Future[None]:
        """Go on, from a file if it was parked. The future raises EngineFull if no place is free for it."""
        return self._engine._run(self._set_paused, False)

    def step_once(self) -> Future[None]:
        """Take one step of a stream that is paused."""
        return self._engine._run(self._take_single)

    def rewind(self, to_step: int) -> Future[None]:
        """`StreamSession.rewind`."""
        return self._engine._run(lambda: self._live().rewind(to_step))

    def reset(self, image: ImageLike | FirstFrame | None = None, **options: Any) -> Future[None]:
        """`StreamSession.reset`, with a picture uint8 [H, W, 3] or float [3, H, W], or a `FirstFrame`."""
        return self._engine._run(lambda: self._restart(image, options))

    def set_prompt(self, prompt: str | Tensor, policy: str = "keep") -> Future[None]:
        """`StreamSession.set_prompt`, with a str or embeddings [L, text_width], and its policy for the past."""
        return self._engine._run(lambda: self._live().set_prompt(prompt, policy))

    def export_replay(self, path: str | Path) -> Future[None]:
        """`StreamSession.export_replay`; for engines with `replayable=True`."""
        return self._engine._run(lambda: self._live().export_replay(path))

    def save(self, path: str | Path) -> Future[None]:
        """`StreamSession.save`, for `StreamEngine.open_saved`."""
        return self._engine._run(lambda: self._live().save(path))

    def forget_controls(self) -> Future[None]:
        """`StreamSession.forget_controls`."""
        return self._engine._run(lambda: self._live().forget_controls())

    def fork(self, source: ControlSource | None = None) -> Future[EngineStream]:
        """Another stream of the engine that goes on from here under the controls of `source`, paused if this one is.

        Without a source, and a control that was set here, it waits for one, since two streams cannot share a player.
        The future raises EngineFull without a free place.
        """
        return self._engine._run(lambda: self._engine._fork(self, source))

    def park(self) -> Future[None]:
        """Move the state to a file, and give its place to others. `resume` moves it back."""
        return self._engine._run(lambda: self._engine._park(self))

    def close(self) -> Future[None]:
        """End the stream, and give back its place. A second call does nothing."""
        return self._engine._run(lambda: self._engine._end(self, "it was closed"))

    # ---- in the engine's thread ----

    def _require_running(self) -> None:
        if self.ended is not None:
            raise SessionClosed(f"stream {self.number}: {self.ended}")

    def _live(self) -> StreamSession:
        """Its session, brought back from a file if need be."""
        self._require_running()
        if self._file is not None:
            self._engine._unpark(self)
        assert self._session is not None
        return self._session

    def _set_source(self, source: ControlSource) -> None:
        self._require_running()
        if not self._wants_step(self.due):  # it has waited for this one
            self.due = max(self.due, self._engine.clock())
        self._source = source

    def _set_paused(self, paused: bool) -> None:
        self._require_running()
        if not paused:
            self._live()
        now = self._engine.clock()
        self.paused, self.due, self.idle_since = paused, max(self.due, now), now

    def _take_single(self) -> None:
        self._live()
        require(self.paused, "step_once", "a stream that is paused", "one that runs")
        self._single += 1

    def _restart(self, image: ImageLike | FirstFrame | None, options: dict[str, Any]) -> None:
        self._live().reset(image, **options)
        if isinstance(image, FirstFrame) and image.control is not None:
            self._control = (0, image.control)

    def _wants_step(self, now: float) -> bool:
        """True if a step is due, and a control for it is there."""
        if self.ended is not None or self.parked or (self.paused and not self._single):
            return False
        has_control = self._engine.model.control is None or self._source is not None or self._control is not None
        return has_control and (self.due <= now or bool(self._single))

    def _next_control(self) -> tuple[int, object]:
        """Number and values of the control of the next step. Raises StopIteration at the end of its source."""
        config = self._engine.model.control
        if self._source is not None:
            return 0, self._source.next(1 if config is None else config.entries)
        return (0, None) if self._control is None else self._control
