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
tensors of both devices; a copy, a wait or an allocation of pinned memory while a CUDA graph is recorded; the replay of
one that reads memory which has gone. Torch's own `torch.cuda.graph`, `torch.cuda.stream` and `torch.cuda.device` run on
it. It may be several GPUs, and knows which of them have been opened.

Limits: memory that a kernel of torch takes for itself is not seen, and temporary tensors of operators that the fake GPU
takes apart are, though a real one has none. A value read from the fake GPU is 0, a truth True. An operator whose result
has a size that depends on values, such as `nonzero`, fails; on a real GPU it waits.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import torch
import torch.cuda.amp.common
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from aapt_fast.ops.registry import OPS
from aapt_fast.testing.fake_gpu import FakeGPU, line
from aapt_fast.testing.fake_streams import torch_cuda, torch_private

ModuleT = TypeVar("ModuleT", bound=torch.nn.Module)

FAKE_GPU = torch.device("cuda:0")
_aten, _prims = torch.ops.aten, torch.ops.prim
_READS = (_aten._local_scalar_dense.default, _aten.item.default, _aten.is_nonzero.default, _aten.equal.default)
_PINS = (_aten._pin_memory.default, _aten.pin_memory.default)


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


@contextmanager
def fake_cuda(
    total_bytes: int = 80 * 2**30, capability: tuple[int, int] = (9, 0), devices: int = 1
) -> Iterator[FakeGPU]:
    """Give torch a fake GPU, or several, inside the `with` block.

    The device of the first is `FAKE_GPU`; "cuda" without a number is none.

    Raises RuntimeError on a machine with a GPU, which shall run the code itself.
    """
    if torch.cuda.is_available():
        raise RuntimeError("fake_cuda: expected a machine without a GPU, got one with")
    gpu = FakeGPU(total_bytes, capability, devices)
    with ExitStack() as stack:
        stack.enter_context(_device_guard())
        for name, value in torch_cuda(gpu).items():
            stack.enter_context(patch.object(torch.cuda, name, value))
        for name, value in torch_private(gpu).items():
            stack.enter_context(patch.object(torch._C, name, value, create=True))
        stack.enter_context(patch.object(torch.backends.cuda, "is_flash_attention_available", lambda: True))
        stack.enter_context(patch.object(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False))
        if hasattr(torch.amp.autocast_mode, "amp_definitely_not_available"):
            stack.enter_context(patch.object(torch.amp.autocast_mode, "amp_definitely_not_available", lambda: False))
        stack.enter_context(_FakeMode(allow_non_fake_inputs=True))
        stack.enter_context(_Dispatch(gpu))
        yield gpu


def on_fake_gpu(module: ModuleT, device: torch.device = FAKE_GPU) -> ModuleT:
    """Give `module` weights on a fake GPU in the place of its own, which may be on the "meta" device.

    To be called in a `fake_cuda` block, on a module that has its final dtype.
    """
    return module._apply(lambda x: torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device))


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
        if kwargs.get("pin_memory") or func in _PINS:
            self._gpu.refuse_in_recording("an allocation of pinned memory")
        if func in _PINS:
            return args[0]
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
        self._gpu.touch(tensor for tensor in _tensors(args) if tensor.device.type == "cuda")
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
        if func is _aten.convolution.default and _is_channels_last_3d(args[0]):
            result = torch.empty_like(result, memory_format=torch.channels_last_3d)  # cuDNN keeps the format
        if not getattr(func, "is_view", False):
            self._gpu.launch(func.__name__.partition(".")[0])
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
            raise RuntimeError(f"{func}: expected tensors of one device, got {shapes}, in {line()}")


def _is_channels_last_3d(x: Tensor) -> bool:
    """True for [B, C, T, H, W] with the channels last in memory."""
    return x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d)


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
