# SPDX-License-Identifier: Apache-2.0
"""Where the sessions of an engine come from: this process alone, or all ranks of a job (`aapt_fast.distributed`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from aapt_fast.models.stream_model import ImageLike, StreamModel
from aapt_fast.streaming.pages import PagePool
from aapt_fast.streaming.session import StreamSession
from aapt_fast.worlds.world import FirstFrame


class SessionSource(Protocol):
    """Protocol for opening the sessions of one model, in one pool."""

    model: StreamModel
    shares_steps: bool
    """True if several sessions can take their steps in one batch."""

    def reserve(self, sessions: int, **options: Any) -> None:
        """Take the memory of so many sessions. Arguments and errors are those of `PagePool.for_sessions`."""

    def open(self, image: ImageLike | FirstFrame | None, **options: Any) -> StreamSession:
        """A session, as of the constructor: `image` is uint8 [H, W, 3] or float [3, H, W], or a `FirstFrame`."""

    def load(self, path: str | Path, **options: Any) -> StreamSession:
        """A session, as of `StreamSession.load`."""

    def from_replay(self, path: str | Path, **options: Any) -> tuple[StreamSession, Sequence[Tensor | None]]:
        """A session and its controls, as of `StreamSession.from_replay`."""

    def delete(self, path: Path) -> None:
        """Delete what `StreamSession.save` of one of these sessions has written at `path`."""

    def close(self) -> None:
        """End: no session is opened from here on, and all have been closed."""


class OwnSessions:
    """A `SessionSource` in this process.

    Args:
        model: of all sessions.
    """

    shares_steps = True
    """Several sessions can take their steps in one batch."""

    def __init__(self, model: StreamModel) -> None:
        self.model = model
        self._pool: PagePool | None = None

    def reserve(self, sessions: int, **options: Any) -> None:
        """See `SessionSource.reserve`."""
        self._pool = PagePool.for_sessions(self.model, sessions, **options)

    def open(self, image: ImageLike | FirstFrame | None, **options: Any) -> StreamSession:
        """See `SessionSource.open`: uint8 [H, W, 3] or float [3, H, W]."""
        return StreamSession(self.model, image, pool=self._pool, **options)

    def load(self, path: str | Path, **options: Any) -> StreamSession:
        """See `SessionSource.load`."""
        return StreamSession.load(path, self.model, pool=self._pool, **options)

    def from_replay(self, path: str | Path, **options: Any) -> tuple[StreamSession, Sequence[Tensor | None]]:
        """See `SessionSource.from_replay`."""
        return StreamSession.from_replay(path, self.model, pool=self._pool, **options)

    def delete(self, path: Path) -> None:
        """See `SessionSource.delete`."""
        path.unlink(missing_ok=True)

    def close(self) -> None:
        """See `SessionSource.close`."""
