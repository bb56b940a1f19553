# SPDX-License-Identifier: Apache-2.0
"""The ledger of a fake GPU (`testing.fake_cuda`): work, memory, recordings, and the GPUs that have been opened."""

from __future__ import annotations

import sys
import threading
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from aapt_fast.profiling.memory import LiveBytes

PACKAGE = Path(__file__).parents[1]
_MULTIPLICATIONS = {"mm", "addmm", "bmm", "baddbmm"}  # by cuBLAS


class Counts:
    """Work since the counting began. Copies, waits and operators are counted by the line of the package behind them."""

    def __init__(self, live_bytes: int = 0) -> None:
        self.uploads: Counter[str] = Counter()
        """Copies from the host to the GPU."""
        self.syncs: Counter[str] = Counter()
        """Waits of the host for the GPU: for a stream or an event, or for a value."""
        self.operators: Counter[str] = Counter()
        """Operators that are no views, by name."""
        self.peak_bytes = live_bytes
        """Most bytes in use at a time."""
        self.taken_bytes = 0
        """Bytes of all new tensors together."""


class Workspace:
    """Work space of cuBLAS, which torch keeps for each thread and stream that has multiplied.

    Args:
        capture: the recording that took it from its memory, if it was one.
    """

    def __init__(self, capture: Capture | None) -> None:
        self.capture = capture


class GraphPool:
    """The memory of recordings that share a handle, for as long as one of them exists."""

    def __init__(self) -> None:
        self.memory = LiveBytes()

    @property
    def kept_bytes(self) -> int:
        """Bytes that no tensor [...] uses now and a replay will."""
        return self.memory.peak - self.memory.live


class Capture:
    """A CUDA graph while it is recorded.

    Args:
        pool: for everything that is allocated meanwhile.
        mode: torch's `capture_error_mode`.
        device: number of the GPU.
    """

    def __init__(self, pool: GraphPool, mode: str, device: int) -> None:
        self.pool, self.mode, self.device = pool, mode, device
        self.broken = False
        """True after an error that ends in a failure of the whole recording."""
        self.inputs: dict[int, weakref.ref] = {}
        """Memory that it reads or works in, and has not allocated."""
        self._own: set[int] = set()
        self._thread = threading.get_ident()

    @property
    def is_of_this_thread(self) -> bool:
        """True in the thread that records."""
        return threading.get_ident() == self._thread

    def allocated(self, tensor: Tensor) -> None:
        """Take the memory of `tensor` [...] from the pool."""
        self._own.add(tensor.untyped_storage()._cdata)
        self.pool.memory.add(tensor)

    def read(self, tensor: Tensor) -> None:
        """Remember the memory of `tensor` [...], unless it is the recording's own."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._own:
            self.inputs.setdefault(storage._cdata, weakref.ref(storage))


class FakeGPU:
    """The fake GPU of a `fake_cuda` block, or several of them, which are counted together.

    Args:
        total_bytes: memory of each.
        capability: compute capability.
        devices: number of GPUs.
    """

    def __init__(self, total_bytes: int, capability: tuple[int, int], devices: int = 1) -> None:
        self.total_bytes, self.capability, self.devices = total_bytes, capability, devices
        self.contexts: set[int] = set()
        """GPUs that the process has opened: a real one then holds some hundred MiB on each."""
        self.capture: Capture | None = None
        """The CUDA graph that is recorded now."""
        self.pools: weakref.WeakValueDictionary[object, GraphPool] = weakref.WeakValueDictionary()
        """Memory of recordings by torch's handle."""
        self._memory = LiveBytes()
        self._counts: list[Counts] = []
        self._workspaces: dict[tuple[int, int], Workspace] = {}  # by thread and stream

    @property
    def recording(self) -> bool:
        """True while a CUDA graph is recorded."""
        return self.capture is not None

    @property
    def live_bytes(self) -> int:
        """Bytes of all tensors [...], and of the temporary ones of recordings, which keep them for their replays."""
        return self._memory.live + sum(pool.kept_bytes for pool in self.pools.values())

    @property
    def peak_bytes(self) -> int:
        """Most bytes of tensors [...] at a time so far, those of recordings left out."""
        return self._memory.peak

    @contextmanager
    def counting(self) -> Iterator[Counts]:
        """Count what happens inside the `with` block."""
        counts = Counts(self.live_bytes)
        self._counts.append(counts)
        try:
            yield counts
        finally:
            self._counts.remove(counts)

    def upload(self) -> None:
        """Count a copy from the host."""
        self.refuse_in_recording("a copy from the host")
        for counts in self._counts:
            counts.uploads[line()] += 1

    def sync(self) -> None:
        """Count a wait of the host."""
        self.refuse_in_recording("a wait of the host")
        for counts in self._counts:
            counts.syncs[line()] += 1

    def launch(self, name: str) -> None:
        """Count an operator, also one that is recorded."""
        for counts in self._counts:
            counts.operators[name] += 1
        if name in _MULTIPLICATIONS:
            self._multiply()

    def forget_workspaces(self, stream: int | None = None) -> None:
        """Give back the work space of one stream, or of all."""
        kept = {} if stream is None else self._workspaces
        self._workspaces = {key: space for key, space in kept.items() if key[1] != stream}

    def touch(self, tensors: Iterable[Tensor]) -> None:
        """Open the GPUs of `tensors` [...], which an operator reads; a recording remembers them."""
        for tensor in tensors:
            self.contexts.add(tensor.device.index)
            if self.capture is not None and self.capture.is_of_this_thread:
                if tensor.device.index != self.capture.device:
                    self.refuse_in_recording("a launch on another GPU")
                self.capture.read(tensor)

    def allocated(self, tensor: Tensor) -> None:
        """Add the memory of `tensor` [...], see `LiveBytes.add`."""
        self.contexts.add(tensor.device.index)
        before = self._memory.taken
        self._memory.add(tensor)
        if self.capture is not None and self.capture.is_of_this_thread:
            self.capture.allocated(tensor)
        for counts in self._counts:
            counts.peak_bytes = max(counts.peak_bytes, self.live_bytes)
            counts.taken_bytes += self._memory.taken - before

    def _multiply(self) -> None:
        key = threading.get_ident(), torch.cuda.current_stream().cuda_stream
        capture = self.capture if self.capture is not None and self.capture.is_of_this_thread else None
        space = self._workspaces.get(key)
        if space is None:
            space = self._workspaces[key] = Workspace(capture)
        if capture is not None and space.capture is not capture:
            capture.inputs[id(space)] = weakref.ref(space)

    def refuse_in_recording(self, what: str) -> None:
        """Raise RuntimeError for `what` the host does while this thread records; in mode "global" while any does."""
        capture = self.capture
        if capture is not None and (capture.is_of_this_thread or capture.mode == "global"):
            capture.broken = True
            raise RuntimeError(f"CUDA graph: {what} while it is recorded, in {line()}")


def line() -> str:
    """The innermost line of the package, outside of its tests, that is running: `ops/rope.py:93`."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE) and path.parent.name != "testing":
            return f"{path.relative_to(PACKAGE)}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside of the package"
