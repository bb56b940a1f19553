# SPDX-License-Identifier: Apache-2.0
"""A GPU that does not exist, for the CUDA paths of Python code on a machine without one.

    with fake_cuda() as gpu:
        model = ...                     # on FAKE_GPU
        session = StreamSession(model, image)
        with gpu.counting() as counts:
            session.step(control)
    assert counts.syncs.total() == 1

Tensors on the CPU stay real. Tensors on the fake GPU are FakeTensors of torch: shapes, dtypes and bytes without values,
so a model of any size fits. Ops of this package run their bodies for GPUs on them. Counted are copies from the host,
waits of the host, operators, and bytes in use. What torch would refuse on a GPU raises RuntimeError: an operator with
tensors of both devices, and a copy or a wait while a CUDA graph is recorded.

Limits: memory that a kernel of torch takes for itself is not seen, and temporary tensors of operators that the fake GPU
takes apart are, though a real one has none. A value read from the fake GPU is 0, a truth True. An operator whose result
has a size that depends on values, such as `nonzero`, fails; on a real GPU it waits.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest.mock import patch

import torch
import torch.cuda.amp.common
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from aapt_fast.ops.registry import OPS
from aapt_fast.profiling.memory import LiveBytes
from aapt_fast.streaming import graph

ModuleT = TypeVar("ModuleT", bound=torch.nn.Module)

FAKE_GPU = torch.device("cuda:0")
PACKAGE = Path(__file__).parents[1]
_aten, _prims = torch.ops.aten, torch.ops.prim
_READS = (_aten._local_scalar_dense.default, _aten.item.default, _aten.is_nonzero.default, _aten.equal.default)


def rms_norm(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    """Results of the operator for x [..., d]: the norm, and a number per row."""
    return torch.empty_like(x), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)


def scaled_dot_product_attention(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
    """Result of the operator for q [B, H, Nq, D], k and v [B, Hkv, L, D], in the memory format of fused kernels."""
    return q.new_empty((*q.shape[:-3], q.shape[-2], q.shape[-3], v.shape[-1])).transpose(-2, -3)


_ONE_KERNEL = {
    _aten._fused_rms_norm.default: rms_norm,
    _aten.scaled_dot_product_attention.default: scaled_dot_product_attention,
}
"""Operators that are one kernel on a GPU, where torch without CUDA knows only their parts."""


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


class FakeGPU:
    """The fake GPU of a `fake_cuda` block.

    Args:
        total_bytes: its memory.
        capability: compute capability.
    """

    def __init__(self, total_bytes: int, capability: tuple[int, int]) -> None:
        self.total_bytes, self.capability = total_bytes, capability
        self._memory = LiveBytes()
        self.recording = False
        """True while a CUDA graph is recorded."""
        self._counts: list[Counts] = []

    @property
    def live_bytes(self) -> int:
        """Bytes of all tensors [...] on it."""
        return self._memory.live

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
        self._refuse_in_recording("a copy from the host")
        for counts in self._counts:
            counts.uploads[_line()] += 1

    def sync(self) -> None:
        """Count a wait of the host."""
        self._refuse_in_recording("a wait of the host")
        for counts in self._counts:
            counts.syncs[_line()] += 1

    def operator(self, name: str) -> None:
        """Count an operator."""
        for counts in self._counts:
            counts.operators[name] += 1

    def allocated(self, tensor: Tensor) -> None:
        """Add the memory of `tensor` [...], see `LiveBytes.add`."""
        self._memory.add(tensor)
        for counts in self._counts:
            counts.peak_bytes = max(counts.peak_bytes, self.live_bytes)

    def _refuse_in_recording(self, what: str) -> None:
        if self.recording:
            raise RuntimeError(f"CUDA graph: {what} while it is recorded, in {_line()}")


@contextmanager
def fake_cuda(total_bytes: int = 80 * 2**30, capability: tuple[int, int] = (9, 0)) -> Iterator[FakeGPU]:
    """Give torch a fake GPU inside the `with` block; write its device as `FAKE_GPU`, "cuda" alone is none.

    Raises RuntimeError on a machine with a GPU, which shall run the code itself.
    """
    if torch.cuda.is_available():
        raise RuntimeError("fake_cuda: expected a machine without a GPU, got one with")
    gpu = FakeGPU(total_bytes, capability)
    with ExitStack() as stack:
        stack.enter_context(_device_guard())
        for name, value in _torch_cuda(gpu).items():
            stack.enter_context(patch.object(torch.cuda, name, value))
        stack.enter_context(patch.object(torch.backends.cuda, "is_flash_attention_available", lambda: True))
        stack.enter_context(patch.object(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False))
        if hasattr(torch.amp.autocast_mode, "amp_definitely_not_available"):
            stack.enter_context(patch.object(torch.amp.autocast_mode, "amp_definitely_not_available", lambda: False))
        stack.enter_context(patch.dict(graph.RECORDERS, cuda=_recorder(gpu)))
        stack.enter_context(_FakeMode(allow_non_fake_inputs=True))
        stack.enter_context(_Dispatch(gpu))
        yield gpu


def on_fake_gpu(module: ModuleT) -> ModuleT:
    """Give `module` weights on the fake GPU in the place of its own, which may be on the "meta" device.

    To be called in a `fake_cuda` block, on a module that has its final dtype.
    """
    return module._apply(lambda x: torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=FAKE_GPU))


class _FakeMode(FakeTensorMode):
    @property
    def avoid_device_init(self) -> bool:
        return True


class _Dispatch(TorchDispatchMode):
    """Sends operators without a fake tensor to the CPU and all others to torch's shapes, and counts the latter."""

    def __init__(self, gpu: FakeGPU) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _prims.device.default:
            return args[0].fake_device if isinstance(args[0], FakeTensor) else args[0].device
        if func.namespace == "prim":
            return func(*args, **kwargs)
        if func in _ONE_KERNEL and isinstance(args[0], FakeTensor):
            return self._on_gpu(_ONE_KERNEL[func], args, {}, [])
        if _has_parts(func):
            with self:  # not `decompose`, which takes some operators further apart than a GPU does
                return func._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
        tensors = _tensors(args)
        fakes = [tensor for tensor in tensors if isinstance(tensor, FakeTensor)]
        kwargs = {name: value for name, value in kwargs.items() if name != "pin_memory"}  # needs a GPU
        device = kwargs.get("device")
        on_gpu = device is not None and torch.device(device).type == "cuda"
        if not fakes and not on_gpu:
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func.namespace == "aapt" and fakes:
            with self:
                return OPS[func._schema.name.removeprefix("aapt::")]["cuda"](*args, **kwargs)
        return self._on_gpu(func, args, kwargs, tensors)

    def _on_gpu(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> Any:
        if func in _READS:
            self._gpu.sync()
            return True if func is _aten.equal.default or args[0].dtype == torch.bool else 0
        if func is _aten._to_copy.default:
            target = kwargs.get("device")
            goes = (args[0].device.type, torch.device(target).type if target is not None else args[0].device.type)
        elif func is _aten.copy_.default:
            goes = (args[1].device.type, args[0].device.type)
        else:
            goes = None
            if "device" not in kwargs:  # empty_like and its kind look at shapes only
                self._refuse_mix(func, tensors)
        if goes == ("cpu", "cuda"):
            self._gpu.upload()
        if goes == ("cuda", "cpu"):
            self._gpu.sync()
            return self._download(func, args, kwargs)
        result = func(*args, **kwargs)
        if not getattr(func, "is_view", False):
            self._gpu.operator(func.__name__.partition(".")[0])
        for tensor in _tensors(result if isinstance(result, tuple | list) else (result,)):
            if tensor.device.type == "cuda":
                self._gpu.allocated(tensor)
        return result

    @staticmethod
    def _download(func: Any, args: Any, kwargs: Any) -> Tensor:
        """Zeros in the place of values from the GPU."""
        with unset_fake_temporarily():
            if func is _aten.copy_.default:
                return args[0].zero_()
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)

    @staticmethod
    def _refuse_mix(func: Any, tensors: list[Tensor]) -> None:
        """Raise RuntimeError for tensors of both devices; numbers, without dimensions, may come from the CPU."""
        if any(tensor.device.type == "cpu" and tensor.dim() for tensor in tensors):
            shapes = ", ".join(f"{list(tensor.shape)} on {tensor.device.type}" for tensor in tensors)
            raise RuntimeError(f"{func}: expected tensors of one device, got {shapes}, in {_line()}")


@functools.cache
def _has_parts(func: Any) -> bool:
    """True if torch itself puts the operator together from others."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def _tensors(arguments: Iterable[Any]) -> list[Tensor]:
    """Tensors [...] among the arguments or results of an operator, those in lists included."""
    found = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            found.append(argument)
        elif isinstance(argument, tuple | list):
            found += [item for item in argument if isinstance(item, Tensor)]
    return found


def _line() -> str:
    """The innermost line of the package, outside of its tests, that is running: `ops/rope.py:93`."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE) and path.parent.name != "testing":
            return f"{path.relative_to(PACKAGE)}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside of the package"


def _recorder(gpu: FakeGPU) -> Callable[[Callable[[], Tensor], torch.device], graph.Recording]:
    """Record as on CUDA: warm-ups, then once with copies and waits refused. A replay computes nothing."""

    def record(function: Callable[[], Tensor], device: torch.device) -> graph.Recording:
        for _ in range(graph.WARM_UPS):
            function()
        gpu.recording = True
        try:
            output = function()
        finally:
            gpu.recording = False
        return graph.Recording(lambda: gpu.operator("replay"), output)

    return record


def _torch_cuda(gpu: FakeGPU) -> dict[str, Any]:
    """Functions of `torch.cuda`, by name, as the fake GPU has them."""

    class Waits:
        """A stream or an event: whoever waits for it is counted."""

        device, device_index, cuda_stream = FAKE_GPU, 0, 0

        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def synchronize(self) -> None:
            gpu.sync()

        def wait_stream(self, other: Any) -> None:
            pass

        def record(self, stream: Any = None) -> None:
            pass

    properties = SimpleNamespace(
        name="fake GPU",
        major=gpu.capability[0],
        minor=gpu.capability[1],
        multi_processor_count=132,
        total_memory=gpu.total_bytes,
    )
    return {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "is_bf16_supported": lambda *_, **__: True,
        "is_current_stream_capturing": lambda: gpu.recording,
        "get_device_capability": lambda *_: gpu.capability,
        "get_device_properties": lambda *_: properties,
        "get_device_name": lambda *_: properties.name,
        "mem_get_info": lambda *_: (gpu.total_bytes - gpu.live_bytes, gpu.total_bytes),
        "memory_reserved": lambda *_: gpu.live_bytes,
        "memory_allocated": lambda *_: gpu.live_bytes,
        "current_stream": Waits,
        "Stream": Waits,
        "Event": Waits,
        "synchronize": lambda *_: gpu.sync(),
    }


@contextmanager
def _device_guard() -> Iterator[None]:
    """Let torch's C++ code enter a CUDA device, which a torch without CUDA refuses.

    A device guard makes a device current. Torch keeps one per type of device in a table, by the numbers of c10's
    DeviceType; that of "meta", which CUDA gets here, does nothing.
    """
    cuda, meta = 1, 14
    library = ctypes.CDLL(str(next((Path(torch.__file__).parent / "lib").glob("*c10.*"))))
    guards = (ctypes.c_void_p * (meta + 1)).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    before = guards[cuda]
    guards[cuda] = before or guards[meta]
    try:
        yield
    finally:
        guards[cuda] = before
