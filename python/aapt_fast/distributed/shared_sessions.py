# SPDX-License-Identifier: Apache-2.0
"""Many sessions on several ranks, for a `StreamEngine` on rank 0.

    rank 0     StreamEngine(model, streams, sessions=SharedSessions(model, transport))     as any engine
    others     SharedSessions(model, transport).follow()                                   until the engine is closed

All ranks open, step and close the same sessions in the same order. Sessions step one after the other: frames that
are large enough to be shared fill the devices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from aapt_fast.distributed.family import Family
from aapt_fast.distributed.shared_session import CHECK_EVERY, SharedSession, part_of
from aapt_fast.distributed.transport import Transport
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.streaming.pages import PagePool

T = TypeVar("T")


class SharedSessions:
    """A `SessionSource` on every rank of a job, of a model from `shard`.

    Args:
        model: of this rank, from `shard`.
        transport: to the other ranks.
    """

    shares_steps = False
    """Several sessions cannot take their steps in one batch."""

    def __init__(self, model: StreamModel, transport: Transport) -> None:
        self.model, self.transport = model, transport
        self.closed = False
        """True after `close`."""
        self._pool: PagePool | None = None
        self._family = Family(transport)
        self._number = self._family.add(self)

    def reserve(self, sessions: int, **options: Any) -> None:
        """Take the memory of so many sessions on every rank. Arguments and errors are those of `for_sessions`.

        RankFailed if another rank has too little memory.
        """
        self._lead("reserve", sessions, **options)
        self._pool = self._family.agreed(lambda: PagePool.for_sessions(self.model, sessions, **options))

    def open(self, image: Any, **options: Any) -> SharedSession:
        """A session on every rank: `image` is uint8 [H, W, 3] or float [3, H, W], or a `FirstFrame`.

        Arguments and errors are those of `StreamSession`. RankFailed if it cannot be opened on another rank.
        """
        self._lead("open", image, **options)
        return self._opened(lambda: SharedSession(self.model, image, **self._ours(options)))

    def load(self, path: str | Path, **options: Any) -> SharedSession:
        """A session on every rank, from the files that `SharedSession.save` has written at `path`; errors as `open`."""
        self._lead("load", path, **options)
        return self._opened(lambda: SharedSession.load(path, self.model, **self._ours(options)))

    def from_replay(self, path: str | Path, **options: Any) -> tuple[SharedSession, Sequence[Tensor | None]]:
        """A session on every rank and its controls, from a file that rank 0 reads; errors as `open`."""
        self._lead("from_replay", path, **options)
        controls: list[Tensor | None] = []

        def opened() -> SharedSession:
            session, found = SharedSession.from_replay(path, self.model, **self._ours(options))
            controls.extend(found)
            return session

        return self._opened(opened), controls

    def delete(self, path: Path) -> None:
        """Delete what `SharedSession.save` has written at `path`: each rank its own file."""
        self._lead("delete", path)
        part_of(path, self.transport).unlink(missing_ok=True)

    def close(self) -> None:
        """End: `follow` of the other ranks returns. A second call does nothing."""
        if not self.closed:
            self._lead("close")
            self.closed, self._pool = True, None

    def follow(self) -> None:
        """Open, step and close the sessions that rank 0 does, until it calls `close`. For ranks above 0.

        Raises the error of a step that has closed a session.
        """
        self._family.follow()

    def _ours(self, options: dict[str, Any]) -> dict[str, Any]:
        return {"pool": self._pool, "transport": self.transport, **options}

    def _lead(self, name: str, *arguments: Any, **options: Any) -> None:
        self._family.lead(self._number, name, *arguments, **options)

    def _opened(self, call: Callable[[], SharedSession]) -> SharedSession:
        """The session that `call` opens on every rank, or none on any."""
        made: list[SharedSession] = []

        def opened() -> SharedSession:
            made.append(call())
            return made[0]

        try:
            session = self._family.agreed(opened)
        except BaseException as error:
            for each in made:
                each._close(f"by {type(error).__name__} of another rank")
            raise
        session._join(self.transport, CHECK_EVERY, self._family)
        return session
