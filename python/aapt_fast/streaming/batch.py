# SPDX-License-Identifier: Apache-2.0
"""Several sessions that take their steps together: one evaluation of the generator makes the next frames of each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from aapt_fast.errors import require, require_type
from aapt_fast.not_copied import NotCopied
from aapt_fast.streaming.boundary import computing
from aapt_fast.streaming.graph import RECORDERS, GraphMemory
from aapt_fast.streaming.run import Run
from aapt_fast.streaming.session import StreamSession
from aapt_fast.streaming.step import Step


class SessionBatch(NotCopied):
    """Sessions of one model that step together. Not safe to use from several threads at a time.

    The weights are read once for all of them, so this takes less time than one step after the other. Every session may
    be at another step of its run, of another seed and prompt. Frames are those of `StreamSession.step` up to rounding.

    The sessions stay the caller's: each may step alone, fork and be reset between two steps of the batch, and belong to
    several batches. To add or remove a session, make another batch. After a reset of one the next step prepares the
    batch anew, and records it anew.

    Args:
        sessions: at least one, none of them twice; of one model and sampler, in one pool (`PagePool.for_sessions`).
        cuda_graph: record the step of the batch as a CUDA graph, with the kernels that are on now. For sessions on a
            GPU. A step in which some session begins its run is not replayed. The memory of the recording is given back
            when one of the sessions is closed or reset.

    Raises:
        TypeError, ValueError: sessions that cannot be batched.
        SessionClosed: one of them is closed.
        PoolExhausted: pages of the pool were taken without a reservation.
        RuntimeError: recording failed, or the sessions were opened in another process, before `os.fork()`. In all
            cases the sessions are as they were.
    """

    no_copy = "batch: it cannot be copied or pickled, as its sessions cannot; SessionBatch(...) makes another"

    def __init__(self, sessions: Sequence[StreamSession], *, cuda_graph: bool = False) -> None:
        self._sessions: list[StreamSession] = _items("sessions", sessions)
        _check(self._sessions)
        require_type("cuda_graph", cuda_graph, bool)
        kind = self._sessions[0].model.device.type
        require(not cuda_graph or kind in RECORDERS, "cuda_graph", f"False: steps on a {kind} are not recorded", True)
        self._cuda_graph = cuda_graph
        self._step = self._make_step()

    def __repr__(self) -> str:
        first, steps = self._sessions[0], sorted(session.steps for session in self._sessions)
        taken = str(steps[0]) if steps[0] == steps[-1] else f"{steps[0]} to {steps[-1]}"
        return f"SessionBatch({len(steps)} sessions of {first.model.name or 'a model'}, steps taken: {taken})"

    @property
    def sessions(self) -> tuple[StreamSession, ...]:
        """The sessions, in the order of the controls and videos of `step`."""
        return tuple(self._sessions)

    def step(self, controls: Sequence[object] | None = None) -> list[Tensor]:
        """The next video of every session, uint8 [F, H, W, 3] each, as `StreamSession.step` gives it.

        Args:
            controls: one per session, as in `StreamSession.step`; None for a model without control.

        Raises:
            TypeError, ValueError: a bad control. Nothing has changed.
            PoolExhausted: as in `StreamSession.step`; nothing has changed.
            SessionClosed: one of the sessions is closed; nothing has changed, the others need a batch of their own.
            RuntimeError: recording anew after a reset failed, or the sessions were opened in another process; nothing
                has changed. Any other error in the middle of a step closes all sessions.
        """
        begun = time.perf_counter()
        for session in self._sessions:
            session._require_open()
        given = [None] * len(self._sessions) if controls is None else _items("controls", controls)
        require(len(given) == len(self._sessions), "controls", f"{len(self._sessions)}, one per session", len(given))
        if any(run is not session._run for run, session in zip(self._step.runs, self._sessions, strict=True)):
            self._step = self._make_step()
        with computing(self._sessions[0].model):
            prepared = [(step, step.prepare(part)) for step, part in self._parts(given)]
            checked = [values for _, entries in prepared for values in entries]  # none for a model without control
            for session, values in zip(self._sessions, checked, strict=bool(checked)):
                session._odd.look_at(values)
            try:
                videos = [video for step, entries in prepared for video in step.take(entries)]
            except BaseException as error:
                for session in self._sessions:
                    session._close(f"by {type(error).__name__} in a step together with others")
                raise
            values = [[each] for each in checked] or [[] for _ in videos]
            for session, own, video in zip(self._sessions, values, videos, strict=True):
                session._count(own, begun, video, alone=len(videos) == 1)
            return videos

    def _parts(self, controls: list[object]) -> list[tuple[Step, list[object]]]:
        """The whole batch, or each session alone where some begin their run and a first step is another computation."""
        began = {session.steps > 0 for session in self._sessions}
        if len(began) > 1 and self._sessions[0].sampler.begins_differently:
            return [
                (session._require_open(), [control]) for session, control in zip(self._sessions, controls, strict=True)
            ]
        return [(self._step, controls)]

    def _make_step(self) -> Step:
        first = self._sessions[0]
        runs: list[Run] = [session._run for session in self._sessions]
        memory = GraphMemory(first.model.device) if self._cuda_graph else None
        with computing(first.model):
            return Step(first.model, first.sampler, runs, memory)


def _check(sessions: list[StreamSession]) -> None:
    require(len(sessions) > 0, "sessions", "at least one", "none")
    for session in sessions:
        require_type("sessions", session, StreamSession)
        session._require_open()
        first = sessions[0]
        require(not session.is_shared, "sessions", "sessions of one device each", "one that several ranks share")
        require(session.model is first.model, "sessions", "sessions of the same model object", "of several")
        in_one = "sessions in one pool: StreamSession(..., pool=PagePool.for_sessions(...))"
        require(session._pool is first._pool, "sessions", in_one, "sessions in several")
        require(session.sampler == first.sampler, "sessions", f"one sampler, {first.sampler}", session.sampler)
    require(len({id(session) for session in sessions}) == len(sessions), "sessions", "each once", "one of them twice")


def _items(name: str, values: Any) -> list[Any]:
    """List `values`. Raises TypeError, with the `name` of the argument, for an object that is no sequence."""
    try:
        return list(values)
    except TypeError as error:
        raise TypeError(f"{name}: expected a sequence, one per session, got {type(values).__name__}") from error
