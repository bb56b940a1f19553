# SPDX-License-Identifier: Apache-2.0
"""Objects that are on every rank of a job under one number: rank 0 makes calls of them, and the others follow."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from aapt_fast.distributed.transport import Transport
from aapt_fast.errors import RankFailed, RankHung, require

T = TypeVar("T")


class Member(Protocol):
    """Something that rank 0 leads and the others follow."""

    @property
    def closed(self) -> bool:
        """True once no more calls come for it. A member that is closed is forgotten."""


class Family:
    """What one `follow` makes calls of: one session and its forks, or all sessions of an engine and where they open.

    Args:
        transport: to the other ranks.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.members: dict[int, Member] = {}
        self._numbers = itertools.count()
        self._following = False

    def add(self, member: Member) -> int:
        """The number of a new member. All ranks have to add the same ones in the same order."""
        self.members = {number: each for number, each in self.members.items() if not each.closed}
        number = next(self._numbers)
        self.members[number] = member
        return number

    def lead(self, number: int, name: str, *arguments: Any, **options: Any) -> None:
        """Let the other ranks make this call, too. Raises ValueError on a rank above 0 that does not follow."""
        if not self._following:
            require(self.transport.rank == 0, name, "rank 0; the others call follow()", self.transport.rank)
            self.transport.broadcast((number, name, arguments, options))

    def follow(self) -> None:
        """Make the calls of rank 0 until all members are closed. For ranks above 0.

        Raises the error of a call that has closed its member.
        """
        rank = self.transport.rank
        require(rank > 0, "follow", "a rank above 0; rank 0 leads", rank)
        self._following = True
        while not all(each.closed for each in self.members.values()):
            number, name, arguments, options = self.transport.broadcast(None)
            member = self.members[number]
            try:
                getattr(member, name)(*arguments, **options)
            except RankHung:
                raise
            except Exception:
                if member.closed:
                    raise

    def agreed(self, call: Callable[[], T]) -> T:
        """The result of a call that all ranks make. If it fails on one of them, all raise an error."""
        error: Exception | None = None
        result: Any = None
        try:
            result = call()
        except RankHung:
            raise
        except Exception as raised:
            error = raised
        said = self.transport.gather(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        for rank, message in enumerate(said):
            if message is not None:
                raise RankFailed(f"rank {rank}: {message}")
        return result


def from_rank_0(transport: Transport, call: Callable[[], T]) -> T:
    """The result, or the error, of a call that rank 0 alone makes, on every rank; tensors arrive on the host."""
    outcome: Any = None
    if transport.rank == 0:
        try:
            outcome = (call(), None)
        except Exception as error:
            outcome = (None, error)
    result, failure = transport.broadcast(outcome)
    if failure is not None:
        raise failure
    return result
