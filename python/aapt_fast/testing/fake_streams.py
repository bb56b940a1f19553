# SPDX-License-Identifier: Apache-2.0
"""Streams, graphs and devices of a fake GPU (`testing.fake_cuda`): the functions of torch that its own code calls.

The classes `torch.cuda.graph`, `torch.cuda.stream` and `torch.cuda.device` stay torch's. Which device and stream are
current is known per thread, as on a GPU; a thread begins with GPU 0. Making a GPU current opens it.
"""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from types import SimpleNamespace
from typing import Any

import torch

from aapt_fast.testing.fake_gpu import Capture, FakeGPU, GraphPool

POOLED_STREAMS = 32
"""Streams that torch makes on a GPU; after as many it hands out the first one again."""


class _Stream:
    """A stream of a fake GPU. Whoever waits for it is counted. `cuda_stream` is 0 for the default stream."""

    def __init__(self, gpu: FakeGPU, device: int, cuda_stream: int = 0) -> None:
        self._gpu, self.device_index, self.cuda_stream = gpu, device, cuda_stream
        self.device = torch.device("cuda", device)

    def synchronize(self) -> None:
        self._gpu.sync()

    def query(self) -> bool:
        self._gpu.refuse_in_recording("a look at a stream")
        return True

    def wait_stream(self, other: Any) -> None:
        pass

    def wait_event(self, event: Any) -> None:
        pass


class _Event:
    """A CUDA event, of a GPU that is done with everything at once."""

    def __init__(self, gpu: FakeGPU) -> None:
        self._gpu = gpu

    def record(self, stream: Any = None) -> None:
        self._at = time.perf_counter()

    def elapsed_time(self, end: Any) -> float:
        return 1e3 * (end._at - self._at)

    def wait(self, stream: Any = None) -> None:
        pass

    def synchronize(self) -> None:
        self._gpu.sync()

    def query(self) -> bool:
        self._gpu.refuse_in_recording("a look at an event")
        return True


class _Graph:
    """`torch.cuda.CUDAGraph`. A replay computes nothing; it checks that the memory it reads still exists."""

    def __init__(self, gpu: FakeGPU) -> None:
        self._gpu = gpu
        self._inputs: dict[int, weakref.ref] | None = None

    def capture_begin(self, pool: object = None, capture_error_mode: str = "global", **_: Any) -> None:
        if self._gpu.capture is not None:
            raise RuntimeError("CUDA graph: another one is recorded at the same time")
        self._pool = self._gpu.pools.setdefault(pool or object(), GraphPool())
        self._gpu.capture = Capture(self._pool, capture_error_mode, torch.cuda.current_device())

    def capture_end(self) -> None:
        capture, self._gpu.capture = self._gpu.capture, None
        assert capture is not None
        if capture.broken:
            raise RuntimeError("CUDA graph: the recording failed because of an earlier error")
        self._inputs = capture.inputs
        weakref.finalize(self, self._gpu.forget_workspaces, torch.cuda.current_stream().cuda_stream)  # as torch 2.13

    def replay(self) -> None:
        assert self._inputs is not None
        if any(storage() is None for storage in self._inputs.values()):
            raise RuntimeError("CUDA graph: it reads memory that has been given back")
        self._gpu.launch("replay")


def torch_cuda(gpu: FakeGPU) -> dict[str, Any]:
    """Functions of `torch.cuda`, by name, as the fake GPU has them."""
    properties = SimpleNamespace(
        name="fake GPU",
        major=gpu.capability[0],
        minor=gpu.capability[1],
        multi_processor_count=132,
        total_memory=gpu.total_bytes,
        L2_cache_size=50 * 2**20,
        uuid="00000000-0000-0000-0000-000000000000",
    )
    here = threading.local()  # .device: the current one; .streams: the current ones by device
    default = [_Stream(gpu, number) for number in range(gpu.devices)]
    streams = itertools.cycle(range(1, 1 + POOLED_STREAMS))

    def index_of(device: Any = None) -> int:
        number = device if isinstance(device, int) else getattr(torch.device(device or "cuda"), "index", None)
        return exchange_device(-1) if number is None else number

    def exchange_device(number: int, opens: bool = True) -> int:
        before = getattr(here, "device", 0)
        if number >= 0 and number != before:
            here.device = number
            if opens:
                gpu.contexts.add(number)
        return before

    def current_stream(device: Any = None) -> _Stream:
        number = index_of(device)
        return getattr(here, "streams", {}).get(number, default[number])

    def set_stream(stream: _Stream) -> None:
        exchange_device(stream.device_index)
        here.streams = {**getattr(here, "streams", {}), stream.device_index: stream}

    def synchronize(device: Any = None) -> None:
        gpu.contexts.add(index_of(device))
        gpu.sync()

    return {
        "is_available": lambda: True,
        "device_count": lambda: gpu.devices,
        "current_device": index_of,
        "_exchange_device": exchange_device,
        "_maybe_exchange_device": lambda number: exchange_device(number, opens=False),
        "is_bf16_supported": lambda *_, **__: True,
        "is_current_stream_capturing": lambda: gpu.capture is not None and gpu.capture.is_of_this_thread,
        "get_device_capability": lambda *_: gpu.capability,
        "get_device_properties": lambda *_: properties,
        "get_device_name": lambda *_: properties.name,
        "mem_get_info": lambda *_: (gpu.total_bytes - gpu.live_bytes, gpu.total_bytes),
        "memory_reserved": lambda *_: gpu.live_bytes,
        "memory_allocated": lambda *_: gpu.live_bytes,
        "max_memory_allocated": lambda *_: gpu.peak_bytes,
        "reset_peak_memory_stats": lambda *_: None,
        "current_stream": current_stream,
        "set_stream": set_stream,
        "Stream": lambda device=None, **_: _Stream(gpu, index_of(device), next(streams)),
        "Event": lambda *_, **__: _Event(gpu),
        "synchronize": synchronize,
        "empty_cache": lambda: gpu.refuse_in_recording("a release of cached memory"),
        "CUDAGraph": lambda *_, **__: _Graph(gpu),
        "graph_pool_handle": object,
    }


def torch_private(gpu: FakeGPU) -> dict[str, Any]:
    """Functions of `torch._C`, by name."""
    return {
        "_host_emptyCache": lambda: gpu.refuse_in_recording("a release of cached memory"),
        "_cuda_clearCublasWorkspaces": gpu.forget_workspaces,
        "_cuda_getDriverVersion": lambda: 13_000,
    }
