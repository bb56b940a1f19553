# SPDX-License-Identifier: Apache-2.0
"""How ranks exchange tensors: the operations that all schemes are built of.

    all_to_all    part i of rank r becomes part r of rank i
    all_gather    everybody has the tensors of all
    neighbours    everybody has a tensor of the rank before and of the rank after
    gather        everybody has the objects of all; for what is small and not a tensor
    broadcast     everybody has an object of rank 0

Sums over ranks are an `all_to_all` of the parts and then a sum on the device, in the order of the ranks and in float32:
always the same bits, whatever the backend and its rings, for the bytes of a reduce-scatter.
"""

from __future__ import annotations

import io
import pickle
import re
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from aapt_fast.errors import RankHung, require

_gather_into: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name before 2.13
CALL_ROLL = timedelta(seconds=5)
"""After an exchange that failed, the time in which a rank has to answer that is still alive."""


class Transport(Protocol):
    """The connection of one rank with the others. Every rank has to make the same calls in the same order."""

    @property
    def rank(self) -> int:
        """Number of this rank, from 0."""

    @property
    def size(self) -> int:
        """Number of ranks."""

    def all_to_all(self, parts: Tensor) -> Tensor:
        """Parts [size, ...], contiguous, one for each rank -> [size, ...], one from each rank."""

    def all_gather(self, x: Tensor) -> Tensor:
        """A tensor [...], contiguous, of the same shape on every rank -> [size, ...]."""

    def neighbours(self, to_previous: Tensor, to_next: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Give a tensor [...] to the rank before and to the rank after, of one shape on all ranks.

        Returns what those two gave; None where there is no such rank.
        """

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, which have to be such that pickle can copy them; tensors arrive on the host."""

    def broadcast(self, value: Any) -> Any:
        """The value of rank 0, likewise. Other ranks wait for it as long as rank 0 takes; what they give is ignored."""


class TorchTransport:
    """A `Transport` over a process group of `torch.distributed`: NCCL for tensors on GPUs, gloo for those on CPUs.

    Args:
        group: of tensors; None for all processes.
        objects: of `gather`, the same ranks; None for `group`. Over gloo, they do not touch a GPU.
        commands: of `broadcast`, likewise. Its time limit on ranks above 0 is how long rank 0 may take.
        on_failure: called before RankHung is raised, for a program that has to end as a whole.

    Raises:
        ValueError: `torch.distributed` has not been initialised (see `launch.start`).
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        objects: dist.ProcessGroup | None = None,
        commands: dist.ProcessGroup | None = None,
        on_failure: Callable[[RankHung], object] | None = None,
    ) -> None:
        started = dist.is_available() and dist.is_initialized()
        require(started, "group", "processes that have called aapt_fast.distributed.launch.start()", "none")
        tensors = group or dist.group.WORLD
        # Not kept alive: a group ends its threads when torch drops it. Later, at the end of Python, they may abort.
        self._group, self._objects = weakref.ref(tensors), weakref.ref(objects or tensors)
        self._commands = weakref.ref(commands or objects or tensors)
        self._on_failure = on_failure
        self._hung: RankHung | None = None
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The processes that exchange tensors; None after `launch.end`."""
        return self._group()

    @property
    def objects(self) -> dist.ProcessGroup | None:
        """The processes that exchange objects; None after `launch.end`."""
        return self._objects()

    def all_to_all(self, parts: Tensor) -> Tensor:
        """See `Transport.all_to_all`: [size, ...] -> [size, ...]."""
        received = torch.empty_like(parts)
        with self._named():
            dist.all_to_all_single(received, parts, group=self.group)
        return received

    def all_gather(self, x: Tensor) -> Tensor:
        """See `Transport.all_gather`: [...] -> [size, ...]."""
        gathered = x.new_empty(self.size, *x.shape)
        with self._named():
            _gather_into(gathered.view(-1), x.view(-1), group=self.group)  # gloo takes one shape only
        return gathered

    def neighbours(self, to_previous: Tensor, to_next: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """See `Transport.neighbours`: [...] each."""
        received: list[Tensor | None] = [None, None]
        operations = []
        for place, (step, sent) in enumerate(((-1, to_previous), (1, to_next))):
            if 0 <= self.rank + step < self.size:
                there = torch.empty_like(sent)
                received[place] = there
                peer = {"group": self.group, "group_peer": self.rank + step}
                operations += [dist.P2POp(dist.isend, sent, **peer), dist.P2POp(dist.irecv, there, **peer)]
        with self._named():
            for request in dist.batch_isend_irecv(operations) if operations else []:
                request.wait()
        return received[0], received[1]

    def gather(self, value: Any) -> list[Any]:
        """See `Transport.gather`."""
        parts: list[Any] = [None] * self.size
        with self._named():
            dist.all_gather_object(parts, _pickled(value), group=self.objects)
        return [pickle.loads(part) for part in parts]

    def broadcast(self, value: Any) -> Any:
        """See `Transport.broadcast`."""
        sent = [_pickled(value) if self.rank == 0 else None]
        with self._named():
            dist.broadcast_object_list(sent, group=self._commands(), group_src=0)
        part = sent[0]
        assert part is not None
        return pickle.loads(part)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Raise RankHung, with the number of the rank that is missing, if the exchange in the `with` block fails.

        From then on, all exchanges raise it at once: the connections are lost.
        """
        if self._hung is not None:
            raise self._hung
        try:
            yield
        except RuntimeError as error:
            hung = self._hung = RankHung(f"rank {self._missing()} did not answer: it hangs or has died")
            if self.rank == 0:  # for the message of `launch.run`
                get_error_handler().record_exception(hung)
            else:
                time.sleep(1)  # rank 0 knows more
            if self._on_failure is not None:
                self._on_failure(hung)
            raise hung from error

    def _missing(self) -> str:
        """The rank, or ranks, that do not answer, in words."""
        try:
            dist.monitored_barrier(self.objects, timeout=CALL_ROLL, wait_all_ranks=True)
        except (RuntimeError, ValueError) as error:
            found = re.search(r"Ranks? ([\d, ]*\d) failed", str(error))
            return found[1] if found else "0" if self.rank else "unknown"
        return "unknown"


class _HostPickler(pickle.Pickler):
    """Copies tensors on a GPU to the host: on another rank that number is the GPU of somebody else."""

    def reducer_override(self, value: Any) -> Any:
        """How to make a copy of `value`, as of `pickle`."""
        if isinstance(value, Tensor) and value.device.type != "cpu":
            return value.detach().cpu().__reduce_ex__(pickle.DEFAULT_PROTOCOL)
        return NotImplemented


def _pickled(value: Any) -> bytes:
    file = io.BytesIO()
    _HostPickler(file).dump(value)
    return file.getvalue()


def sum_over_ranks(transport: Transport, x: Tensor) -> Tensor:
    """The sum of the tensors [...] of all ranks, of one shape, in float32 and in the order of the ranks -> [...]."""
    return transport.all_gather(x.contiguous()).float().sum(0).to(x.dtype)


def require_agreement(transport: Transport, facts: dict[str, str]) -> None:
    """Raise the same ValueError on every rank unless all have the same `facts`."""
    of_all = transport.gather(facts)
    for rank, others in enumerate(of_all):
        for name, value in of_all[0].items():
            got = f"{value} on rank 0, {others.get(name)} on rank {rank}"
            require(others.get(name) == value, name, "the same on every rank", got)
