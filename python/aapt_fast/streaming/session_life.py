# SPDX-License-Identifier: Apache-2.0
"""The life of a session: its run, pages and step, from its opening until it is closed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TypeVar

from torch import Tensor

from aapt_fast.errors import SessionClosed, require, require_integer, require_type
from aapt_fast.models.own_process import OwnProcess
from aapt_fast.models.sampling import Sampler, require_sampler
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.not_copied import NotCopied
from aapt_fast.streaming.ahead import Ahead
from aapt_fast.streaming.boundary import check_pool, computing, wait_for
from aapt_fast.streaming.control_log import ControlLog
from aapt_fast.streaming.graph import RECORDERS, GraphMemory
from aapt_fast.streaming.latency import LatencyCounter
from aapt_fast.streaming.odd_controls import OddControls
from aapt_fast.streaming.pages import PagePool, released_on_failure
from aapt_fast.streaming.run import Run, Start, open_run
from aapt_fast.streaming.saved import SavedRun
from aapt_fast.streaming.step import Step

Self = TypeVar("Self", bound="SessionLife")
IN_TWO_THREADS = (
    "session: a step is being taken in another thread; a session serves one thread at a time, "
    "see docs/reference/threads.md"
)


class SessionLife(NotCopied):
    """The base of `StreamSession`: everything but the ways to go on."""

    latency: LatencyCounter
    """Times since the start or the last reset, and whether the steps keep real time."""
    is_shared = False
    """True for a session that is on several ranks, which step in step (`aapt_fast.distributed.SharedSession`)."""
    _log: ControlLog | None = None
    """Controls of the steps so far, where they are kept."""
    _replayable = False
    """True if every run keeps them."""

    def _set_up(
        self, model: StreamModel, sampler: Sampler | None, cuda_graph: bool, pool: PagePool | None, history: int
    ) -> None:
        """Check and keep what every run of the session has in common. Raises as the constructor does."""
        require_type("model", model, StreamModel)
        require_type("cuda_graph", cuda_graph, bool)
        require_integer("history", history)
        require(history >= 0, "history", "0 steps or more", history)
        kind = model.device.type
        require(not cuda_graph or kind in RECORDERS, "cuda_graph", f"False: steps on a {kind} are not recorded", True)
        if sampler is None:
            sampler = model.generator.default_sampler()
        require_sampler(sampler)
        sampler.check(model.generator)
        if pool is not None:
            require_type("pool", pool, PagePool)
            check_pool(pool, model)
        self.model, self.sampler, self._cuda_graph, self._history = model, sampler, cuda_graph, int(history)
        self._pool, self._owns_pool = pool, pool is None
        self._closed: str | None = None  # why
        self._step: Step | None = None
        self._ahead: Ahead | None = None  # of the last loop over `frames(ahead=True)`
        self._unused: tuple[object, list[object]] = (None, [])  # a source, and a control that such a loop left over
        self._odd = OddControls(model)
        self._stepping = threading.Lock()
        self._own_process = OwnProcess("session: it was opened")

    def close(self) -> None:
        """Give back the pages, and the memory of recordings. A second call does nothing."""
        self._close("by close()")

    def __enter__(self: Self) -> Self:
        self._require_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def first_frame(self) -> Tensor | None:
        """The image as the VAE shows it, uint8 [H, W, 3]: the video frame before those of the first step, if any."""
        frame = self._run.first_frame
        return None if frame is None else frame.clone()

    @property
    def frame(self) -> Tensor:
        """The newest latent frame, float32 [1, C, 1, h, w]: a copy of the recycled frame of the next step.

        For blocks of n frames those of the last step, [1, C, n, h, w]. Raises ValueError while there are none.
        """
        require(self._run.frame is not None, "frame", "an image or a step before", "neither")
        assert self._run.frame is not None
        return self._run.frame.clone()

    @property
    def steps(self) -> int:
        """Steps taken since the start or the last reset."""
        return self._run.steps

    @property
    def oldest_step(self) -> int:
        """The earliest step that `rewind` can go back to; the newest one without a history."""
        return self._run.history.oldest(self._run.steps)

    @property
    def seed(self) -> int:
        """Seed of the noise."""
        return self._run.start.seed

    @property
    def closed(self) -> bool:
        """True once the session has given its pages back and can no longer be used."""
        return self._closed is not None

    def _count(self, values: Sequence[Tensor], begun: float, video: Tensor, alone: bool = True) -> None:
        """Note a step that is over, with the values of its control and the time at which it began."""
        self.latency.record_step(time.perf_counter() - begun, len(video))
        if self._log is not None:
            self._log.add(self.steps, values, alone)

    def _check(self, step: Step, control: object) -> list[Tensor]:
        """Take the pages of a step, and make the values of its control: the argument of `Step.take`."""
        with computing(self.model):
            entries = step.prepare([control])
            for values in entries:
                self._odd.look_at(values)
            return entries

    @contextmanager
    def _closed_on_failure(self, place: str) -> Iterator[None]:
        """Close the session if the `with` block, at this `place`, fails."""
        try:
            yield
        except BaseException as error:
            self._close(f"by {type(error).__name__} in {place}")
            raise

    @contextmanager
    def _in_one_thread(self) -> Iterator[None]:
        """Raise RuntimeError if another thread takes a step of this session now."""
        if not self._stepping.acquire(blocking=False):
            raise RuntimeError(IN_TWO_THREADS)
        try:
            yield
        finally:
            self._stepping.release()

    def _begin(self, start: Start, begun: float, saved: SavedRun | None = None) -> None:
        memory = GraphMemory(self.model.device) if self._cuda_graph else None
        run = open_run(self.model, self.sampler, start, self._pool_of, memory, self._history)
        if saved is not None:
            with released_on_failure(run):
                saved.restore(run, self.model.device)
        self._take(run)
        if self._replayable:
            self._log = ControlLog()
        if run.first_frame is not None:
            wait_for(run.first_frame)
        self.latency = LatencyCounter()
        self.latency.first_frame_s = time.perf_counter() - begun

    def _take(self, run: Run) -> None:
        """Continue with `run`; it is released if its step cannot be recorded."""
        try:
            self._step = Step(self.model, self.sampler, [run], run.memory)
        except BaseException:
            run.release()
            raise
        self._run = run

    def _pool_of(self, pages: int) -> PagePool:
        """The given pool, or one of this session's own with `pages` pages."""
        if self._owns_pool and (self._pool is None or self._pool.pages != pages):
            self._pool = None  # its memory goes first
            self._pool = PagePool.for_model(self.model, pages)
        assert self._pool is not None
        return self._pool

    def _close(self, why: str) -> None:
        if self._closed is None:
            self._closed = why
            self._drop()
            if self._owns_pool:
                self._pool = None

    def _drop(self) -> None:
        """Give back the pages of the run, and the memory of its recordings."""
        if self._ahead is not None:
            self._ahead.withdraw()
        self._run.release()
        self._run.decoder.reset()
        self._step = None

    def _require_open(self, but: Ahead | None = None) -> Step:
        """The `Step` of this session alone. Frames that were computed ahead are taken back, except those of `but`.

        Raises SessionClosed after `close`, RuntimeError in another process.
        """
        self._own_process.require()
        if self._closed is not None or self._step is None:
            raise SessionClosed(f"session: it was closed {self._closed}")
        if self._ahead is not None and self._ahead is not but:
            self._ahead.withdraw()
        return self._step
