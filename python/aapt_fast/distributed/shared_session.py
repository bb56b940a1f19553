# SPDX-License-Identifier: Apache-2.0
"""One stream on several ranks: rank 0 leads, the others follow.

    rank 0     session.step(control)   session.rewind(3)   session.close()         as any `StreamSession`
    others     session.follow()                                                    until rank 0 closes its session

Before each call rank 0 sends its name and arguments; then all ranks make it, in step. An error that leaves the session
of rank 0 as it was (a bad control) does the same on all ranks.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from aapt_fast.distributed.family import Family, from_rank_0
from aapt_fast.distributed.transport import Transport
from aapt_fast.errors import RanksDiffer, require
from aapt_fast.streaming.frames import FrameIterator
from aapt_fast.streaming.saved import read_replay
from aapt_fast.streaming.session import StreamSession

CHECK_EVERY = 64
"""Steps between two comparisons of the ranks' frames."""


class SharedSession(StreamSession):
    """A `StreamSession` on every rank of a job, of a model from `shard`.

    Open it on all ranks with the same arguments; then rank 0 uses it, and the others call `follow`.

    Args:
        model, image, options: as for `StreamSession`, the same on every rank.
        transport: to the other ranks.
        check_every: steps between two comparisons of the ranks' newest frames, bit for bit.

    Raises:
        The errors of `StreamSession`, on every rank.
    """

    is_shared = True
    transport: Transport
    """To the other ranks."""

    def __init__(
        self, model: Any, image: Any = None, *, transport: Transport, check_every: int = CHECK_EVERY, **options: Any
    ) -> None:
        require(check_every >= 1, "check_every", "at least 1 step", check_every)
        super().__init__(model, image, **options)
        self._join(transport, check_every)

    @classmethod
    def load(  # type: ignore[override]
        cls, path: str | Path, model: Any, *, transport: Transport, check_every: int = CHECK_EVERY, **options: Any
    ) -> SharedSession:
        """As `StreamSession.load`, on every rank, from the files of `save`.

        Raises ValueError for a `check_every` below 1.
        """
        require(check_every >= 1, "check_every", "at least 1 step", check_every)
        session = super().load(part_of(path, transport), model, **options)
        assert isinstance(session, SharedSession)
        session._join(transport, check_every)
        return session

    @classmethod
    def from_replay(  # type: ignore[override]
        cls, path: str | Path, model: Any, *, transport: Transport, check_every: int = CHECK_EVERY, **options: Any
    ) -> tuple[SharedSession, Sequence[Tensor | None]]:
        """As `StreamSession.from_replay`, on every rank, from a file that rank 0 alone reads.

        With "tp" it fits ranks of the same number only. Errors of reading are raised on every rank, ValueError for a
        `check_every` below 1.
        """
        require(check_every >= 1, "check_every", "at least 1 step", check_every)
        begun = time.perf_counter()
        session = object.__new__(cls)
        set_up = {"sampler": None, "cuda_graph": False, "pool": None, "history": 0} | options
        session._set_up(model, **set_up)
        replay = from_rank_0(transport, lambda: read_replay(path, model, session.sampler))
        controls = session._begin_replay(replay.on(model.device), begun)
        session._join(transport, check_every)
        return session, controls

    def step(self, control: object = None) -> Tensor:
        """As `StreamSession.step`: uint8 [4, H, W, 3]. Raises RanksDiffer, too, which closes the session."""
        self._lead("step", control)
        video = super().step(control)
        if self.steps % self._check_every == 0:
            with self._closed_on_failure(f"step {self.steps}"):
                self._compare()
        return video

    def frames(self, source: Any = None, steps: int | None = None, *, ahead: bool = False) -> FrameIterator:
        """As `StreamSession.frames`: uint8 [4, H, W, 3] each. Raises ValueError for `ahead`."""
        require(not ahead, "ahead", "False: ranks compute one after the other", True)
        return super().frames(source, steps)

    def rewind(self, to_step: int) -> None:
        """As `StreamSession.rewind`."""
        self._lead("rewind", to_step)
        super().rewind(to_step)

    def set_prompt(self, prompt: Any, policy: str = "keep") -> None:
        """As `StreamSession.set_prompt`."""
        self._lead("set_prompt", prompt, policy)
        super().set_prompt(prompt, policy)

    def reset(self, image: Any = None, **options: Any) -> None:
        """As `StreamSession.reset`."""
        self._lead("reset", image, **options)
        super().reset(image, **options)

    def forget_controls(self) -> None:
        """As `StreamSession.forget_controls`."""
        self._lead("forget_controls")
        super().forget_controls()

    def fork(self) -> SharedSession:
        """As `StreamSession.fork`; the other ranks, which follow this session, follow the fork, too."""
        self._lead("fork")
        other = super().fork()
        assert isinstance(other, SharedSession)
        other._number = self._family.add(other)
        return other

    def save(self, path: str | Path) -> None:
        """As `StreamSession.save`, one file per rank: `x.safetensors` becomes `x.rank-0-of-8.safetensors` and so on."""
        self._lead("save", path)
        super().save(part_of(path, self.transport))

    def close(self) -> None:
        """As `StreamSession.close`; after the last one of a session and its forks, `follow` of other ranks returns."""
        self._lead("close")
        super().close()

    def follow(self) -> None:
        """Make the calls that rank 0 makes, for this session and its forks, until all are closed. For ranks above 0.

        Raises the error of a step that has closed a session.
        """
        self._family.follow()

    def _join(self, transport: Transport, check_every: int, family: Family | None = None) -> None:
        self.transport, self._check_every = transport, check_every
        self._family = family or Family(transport)
        self._number = self._family.add(self)

    def _lead(self, name: str, *arguments: Any, **options: Any) -> None:
        """Let the other ranks make this call, too; not for a closed session, of which they have heard."""
        if not self.closed:
            self._family.lead(self._number, name, *arguments, **options)

    def _compare(self) -> None:
        sums = self.transport.gather(zlib.crc32(self.frame.cpu().numpy().tobytes()))
        odd = [rank for rank, value in enumerate(sums) if value != sums[0]]
        if odd:
            raise RanksDiffer(f"frames of step {self.steps} are not those of rank 0 on ranks {odd}")


def part_of(path: str | Path, transport: Transport) -> Path:
    """The file of this rank's part of a session that is saved at `path`."""
    whole = Path(path)
    return whole.with_name(f"{whole.stem}.rank-{transport.rank}-of-{transport.size}{whole.suffix}")
