# SPDX-License-Identifier: Apache-2.0
"""Ranks as threads of one process: what n ranks compute, without processes, networks or GPUs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
SECONDS = 60  # after which a rank that waits for another one gives up


class Meeting:
    """The place where ranks lay down what the others take."""

    def __init__(self, size: int) -> None:
        self.size, self.values = size, [None] * size
        self.barrier = threading.Barrier(size, timeout=SECONDS)

    def exchange(self, rank: int, value: Any) -> list[Any]:
        """The values of all ranks."""
        self.values[rank] = value
        self.barrier.wait()
        values = list(self.values)
        self.barrier.wait()
        return values


class ThreadTransport:
    """A `Transport` between threads, which counts the bytes that it would have sent."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self._meeting, self.rank, self.size, self.bytes = meeting, rank, meeting.size, 0

    def all_to_all(self, parts: Tensor) -> Tensor:
        """[size, ...] -> [size, ...]."""
        assert parts.is_contiguous() and len(parts) == self.size
        self.bytes += parts.nbytes * (self.size - 1) // self.size
        return torch.stack([each[self.rank] for each in self._meeting.exchange(self.rank, parts)])

    def all_gather(self, x: Tensor) -> Tensor:
        """[...] -> [size, ...]."""
        assert x.is_contiguous()
        self.bytes += x.nbytes * (self.size - 1)
        return torch.stack(self._meeting.exchange(self.rank, x))

    def neighbours(self, to_previous: Tensor, to_next: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """[...] each."""
        assert to_previous.is_contiguous() and to_next.is_contiguous()
        given = self._meeting.exchange(self.rank, (to_previous, to_next))
        self.bytes += to_previous.nbytes * ((self.rank > 0) + (self.rank + 1 < self.size))
        before = given[self.rank - 1][1] if self.rank > 0 else None
        after = given[self.rank + 1][0] if self.rank + 1 < self.size else None
        return before, after

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks."""
        return self._meeting.exchange(self.rank, value)

    def broadcast(self, value: Any) -> Any:
        """The value of rank 0."""
        return self._meeting.exchange(self.rank, value)[0]


class EchoTransport:
    """A `Transport` for one rank by itself, on any device: what the others would have sent is a copy of its own.

    The numbers are wrong; shapes, devices, memory and the order of launches are those of a rank of so many.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def all_to_all(self, parts: Tensor) -> Tensor:
        """[size, ...] -> [size, ...]."""
        return parts.clone()

    def all_gather(self, x: Tensor) -> Tensor:
        """[...] -> [size, ...]."""
        return torch.stack([x] * self.size)

    def neighbours(self, to_previous: Tensor, to_next: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """[...] each."""
        before = to_previous.clone() if self.rank > 0 else None
        return before, to_next.clone() if self.rank + 1 < self.size else None

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks."""
        return [value] * self.size

    def broadcast(self, value: Any) -> Any:
        """The value of rank 0."""
        return value


def on_ranks(size: int, work: Callable[[ThreadTransport], T]) -> list[T]:
    """The results of `work` on so many ranks. The first error of a rank is raised, and the other ranks are released."""
    meeting = Meeting(size)

    def run(rank: int) -> T:
        try:
            return work(ThreadTransport(meeting, rank))
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(run, rank) for rank in range(size)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda each: isinstance(each, threading.BrokenBarrierError)):
        raise error
    return [future.result() for future in futures]
