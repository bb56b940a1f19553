# SPDX-License-Identifier: Apache-2.0
"""Many streams of one model on one device, each in real time: who takes a step next, and who has a place.

    callers, any thread     control()   pause()   rewind()   fork()   open()   ...
                                 |          |          |
    engine's thread         [commands] -> [steps that are due] -> [commands] -> ...      all of torch happens here
                                               |
    viewers                              video of each step

A stream is due once per latent period (four video frames: 1/6 s). The stream with the earliest deadline goes first, and
all that are due go in one batch where that pays. A stream that is late does not catch up by steps in a row: it goes on
from now, so that it cannot take the time of others.
"""

from __future__ import annotations

import itertools
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from aapt_fast.errors import EngineFull, SessionClosed, require, require_integer, require_type
from aapt_fast.models.sampling import Sampler
from aapt_fast.models.stream_model import ImageLike, StreamModel
from aapt_fast.not_copied import NotCopied
from aapt_fast.streaming.batch import SessionBatch
from aapt_fast.streaming.controls import ControlSource
from aapt_fast.streaming.engine_stream import EngineStream, Shown
from aapt_fast.streaming.session import StreamSession
from aapt_fast.streaming.session_source import OwnSessions, SessionSource
from aapt_fast.worlds.world import FPS, FirstFrame

T = TypeVar("T")
Clock = Callable[[], float]


class StreamEngine(NotCopied):
    """Runs many streams of one model in real time, in a thread of its own. Safe to use from several threads.

    The memory of all streams is declared and taken when the engine is made, so that it never runs out later: a full
    engine refuses another stream in one sentence.

    Args:
        model: of all streams.
        streams: places on the device, at least 1.
        sampler, cuda_graph, history, replayable: as in `StreamSession`. One that was parked keeps no controls.
        text_length: most tokens of a prompt, for generators whose frames attend to it through the cache.
        parked: streams that may be in files besides. When all places are taken, the one that has been paused for the
            longest time is moved there. 0: none is.
        folder: for these files; None for a temporary one. They are deleted with their streams.
        batch: take the steps of streams that are due together, in one evaluation; None where that pays: on a GPU, for
            sessions that can.
        clock: gives the time in seconds.
        sessions: opens the sessions, of `model`; None for sessions of this process. `distributed.SharedSessions` opens
            them on all ranks of a job; the engine belongs to rank 0 then, and its end is theirs.

    Raises:
        TypeError, ValueError: an argument of another type or range.
        PoolExhausted: the device has too little memory for so many streams; nothing has been allocated.

        with StreamEngine(model, streams=4) as engine:
            stream = engine.open(first, source=model.world.player(first, "walk"))
            stream.watch(lambda shown: send(shown.video))
    """

    no_copy = "engine: it cannot be copied or pickled, as it owns the memory of its streams"

    def __init__(
        self,
        model: StreamModel,
        streams: int,
        *,
        sampler: Sampler | None = None,
        cuda_graph: bool = False,
        history: int = 0,
        replayable: bool = False,
        text_length: int = 0,
        parked: int = 0,
        folder: str | Path | None = None,
        batch: bool | None = None,
        clock: Clock = time.monotonic,
        sessions: SessionSource | None = None,
    ) -> None:
        require_type("model", model, StreamModel)
        for name, value, least in (("streams", streams, 1), ("parked", parked, 0)):
            require_integer(name, value)
            require(value >= least, name, f"{least} or more", value)
        self.model, self.places, self.parked_places, self.clock = model, streams, parked, clock
        require_type("replayable", replayable, bool)
        self._options: dict[str, Any] = {"sampler": sampler, "cuda_graph": cuda_graph, "history": history}
        self._replayable = replayable
        self._sessions = sessions or OwnSessions(model)
        require(self._sessions.model is model, "sessions", "sessions of the engine's model", "of another")
        together = self._sessions.shares_steps
        require(together or not batch, "batch", "False for sessions that several ranks share", batch)
        self._sessions.reserve(streams, sampler=sampler, text_length=text_length, history=history)
        self._batched = together and (model.device.type == "cuda" if batch is None else batch)
        self._temporary = tempfile.TemporaryDirectory(prefix="aapt_fast-") if folder is None else None
        self._folder = Path(self._temporary.name if self._temporary is not None else str(folder))
        self._streams: list[EngineStream] = []
        self._batches: dict[tuple[int, ...], SessionBatch] = {}
        self._numbers = itertools.count(1)
        self._commands: list[tuple[Future[Any], Callable[[], Any]]] = []
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="aapt_fast-engine", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        live, parked = self._count(False), self._count(True)
        return f"StreamEngine({self.model.name or 'a model'}, {live} of {self.places} places taken, {parked} parked)"

    @property
    def period(self) -> float:
        """Seconds of video that a step makes: 1/6 for four video frames."""
        sampler = self._options["sampler"] or self.model.generator.default_sampler()
        return 4 * sampler.rule(self.model.generator).frames / FPS

    def open(
        self,
        image: ImageLike | FirstFrame | None = None,
        *,
        source: ControlSource | None = None,
        prompt: str | Tensor | None = None,
        seed: int = 0,
        image_control: object = None,
        paused: bool = False,
    ) -> EngineStream:
        """Open a stream, and begin with its steps as soon as it has a control; waits until it is open.

        Args:
            image, prompt, seed, image_control: as in `StreamSession`; a picture is uint8 [H, W, 3] or float [3, H, W],
                a prompt a str or embeddings [L, text_width].
            source: a player whose `next(4)` gives the control of a step, until `EngineStream.control` is called.
                Without one the control of the `FirstFrame` is held, if it has one; else the stream waits for the first.
            paused: wait for `resume`.

        Raises:
            EngineFull: no place is free, and no paused stream can be parked; nothing has changed.
            TypeError, ValueError, PoolExhausted: as `StreamSession`.
        """
        arguments: dict[str, Any] = {"prompt": prompt, "seed": seed, "image_control": image_control}
        arguments |= {"replayable": self._replayable, **self._options}
        held = image.control if isinstance(image, FirstFrame) else None

        def opened() -> EngineStream:
            self._make_place()
            stream = EngineStream(self, next(self._numbers))
            stream._session = self._sessions.open(image, **arguments)
            stream._source, stream._control = source, None if held is None else (0, held)
            return self._add(stream, paused)

        return self._run(opened).result()

    def open_replay(self, path: str | Path, *, paused: bool = False) -> tuple[EngineStream, Sequence[Tensor | None]]:
        """Open a stream at the start of the one that wrote the file, and the controls of its steps.

        The stream waits for a control, or a source (`EngineStream.follow`). Raises as `open` and as
        `StreamSession.from_replay`.
        """

        def opened() -> tuple[EngineStream, Sequence[Tensor | None]]:
            self._make_place()
            stream = EngineStream(self, next(self._numbers))
            stream._session, controls = self._sessions.from_replay(path, **self._options)
            return self._add(stream, paused), controls

        return self._run(opened).result()

    def open_saved(self, path: str | Path, *, paused: bool = False) -> EngineStream:
        """Open a stream that goes on from the file of `EngineStream.save`; like one that was parked, it has no replay.

        The stream waits for a control, or a source (`EngineStream.follow`). Raises as `open` and `StreamSession.load`.
        """

        def opened() -> EngineStream:
            self._make_place()
            stream = EngineStream(self, next(self._numbers))
            stream._session = self._sessions.load(path, **self._options)
            return self._add(stream, paused)

        return self._run(opened).result()

    def command(self, call: Callable[[], T]) -> Future[T]:
        """Let the engine's thread call a function between two steps: all that it does to streams happens at once."""
        return self._run(call)

    def close(self) -> None:
        """End all streams and the thread. A second call does nothing."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> StreamEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- the engine's thread ----

    def _run(self, command: Callable[..., T], *arguments: Any) -> Future[T]:
        """Let the engine's thread call `command` between two steps."""
        future: Future[T] = Future()
        if threading.current_thread() is self._thread:  # a viewer's
            _answer(future, lambda: command(*arguments))
            return future
        with self._changed:
            if self._closing:
                raise SessionClosed("engine: it was closed")
            self._commands.append((future, lambda: command(*arguments)))
            self._changed.notify()
        return future

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._commands and not self._closing and not self._due():
                    self._changed.wait(self._seconds_to_next())
                commands, self._commands = self._commands, []
                closing = self._closing
            for future, command in commands:
                _answer(future, command)
            if closing:
                break
            self.take_due_steps()
        for stream in list(self._streams):
            self._end(stream, "its engine was closed")
        self._batches.clear()
        self._sessions.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _due(self) -> list[EngineStream]:
        """Streams whose step is due, the earliest deadline first."""
        now = self.clock()
        return sorted((each for each in self._streams if each._wants_step(now)), key=lambda each: each.due)

    def _seconds_to_next(self) -> float | None:
        """Seconds until the next step is due; None while nothing will be."""
        waiting = [each.due for each in self._streams if each._wants_step(each.due)]
        return max(min(waiting) - self.clock(), 0.0) if waiting else None

    def take_due_steps(self) -> None:
        """Take the step of the stream with the earliest deadline, or of all that are due in one batch."""
        due = self._due()
        ready = []
        for stream in due if self._batched else due[:1]:
            try:
                ready.append((stream, *stream._next_control()))
            except StopIteration:
                self._end(stream, "its source has ended")
            except Exception as error:
                self._end(stream, f"its source failed: {type(error).__name__}: {error}")
        if not ready:
            return
        begun = self.clock()
        sessions = [stream._live() for stream, _, _ in ready]
        try:
            videos = self._step(sessions, [control for _, _, control in ready])
        except Exception as error:
            for stream, _, _ in ready:
                self._end(stream, f"its step failed: {type(error).__name__}: {error}")
            return
        for (stream, number, _), video in zip(ready, videos, strict=True):
            self._show(stream, Shown(stream.steps, video, number, begun, self.clock()))

    def _step(self, sessions: Sequence[StreamSession], controls: Sequence[object]) -> list[Tensor]:
        if len(sessions) == 1:
            return [sessions[0].step(controls[0])]
        key = tuple(map(id, sessions))
        if key not in self._batches:
            self._batches[key] = SessionBatch(sessions, cuda_graph=self._options["cuda_graph"])
        return self._batches[key].step(controls)

    def _show(self, stream: EngineStream, shown: Shown) -> None:
        late = shown.begun > stream.due + self.period
        stream.late += late
        stream.due = self.period + (shown.begun if late else stream.due)
        stream.idle_since, stream._single = shown.done, max(stream._single - 1, 0)
        for viewer in list(stream._viewers):
            try:
                viewer(shown)
            except Exception:
                stream._viewers.remove(viewer)

    def _add(self, stream: EngineStream, paused: bool) -> EngineStream:
        stream.due = stream.idle_since = self.clock()
        stream.paused = paused
        self._streams.append(stream)
        return stream

    def _fork(self, origin: EngineStream, source: ControlSource | None) -> EngineStream:
        session = origin._live()
        self._make_place(keep=origin)
        stream = EngineStream(self, next(self._numbers))
        stream._session, stream._source, stream._control = session.fork(), source, origin._control
        return self._add(stream, origin.paused)

    def _end(self, stream: EngineStream, why: str) -> None:
        if stream.ended is not None:
            return
        stream.ended = why
        self._forget_batches(stream)
        if stream._session is not None:
            stream._session.close()
        if stream._file is not None:
            self._sessions.delete(stream._file)
            stream._file = None
        self._streams.remove(stream)
        for told in stream._told_of_end:
            told(why)

    def _forget_batches(self, stream: EngineStream) -> None:
        self._batches = {key: each for key, each in self._batches.items() if id(stream._session) not in key}

    # ---- places ----

    def _count(self, parked: bool) -> int:
        return sum(each.parked == parked for each in self._streams)

    def _make_place(self, keep: EngineStream | None = None) -> None:
        """Free a place on the device if none is. Raises EngineFull, having changed nothing, if that is impossible."""
        if self._count(False) < self.places:
            return
        idle = [each for each in self._streams if each.paused and not each.parked and each is not keep]
        if not idle or self._count(True) >= self.parked_places:
            taken = f"{self.places} of {self.places} places are taken"
            raise EngineFull(f"engine: expected a free place, but {taken}, and no paused stream can be parked")
        self._park(min(idle, key=lambda each: each.idle_since))

    def _park(self, stream: EngineStream) -> None:
        stream._require_running()
        if stream.parked:
            return
        expected = f"fewer than {self.parked_places} parked streams"
        require(self._count(True) < self.parked_places, "park", expected, self._count(True))
        path = self._folder / f"{stream.number}.safetensors"
        session = stream._live()
        session.save(path)
        self._forget_batches(stream)
        session.close()
        stream._file, stream.paused = path, True

    def _unpark(self, stream: EngineStream) -> None:
        assert stream._file is not None
        self._make_place(keep=stream)
        stream._session = self._sessions.load(stream._file, **self._options)
        self._sessions.delete(stream._file)
        stream._file = None


def _answer(future: Future[T], command: Callable[[], T]) -> None:
    """Set the future to what `command` returns or raises."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(command())
    except BaseException as error:
        future.set_exception(error)
