# SPDX-License-Identifier: Apache-2.0
"""Which compiled kernel runs for an op, by one rule that a user can see and change.

A kernel is named `op/variant`, for example "paged_attention/portable". For a call of the op it runs when

1. the compiled module has it and runs on the tensors' device (a CUDA module on GPUs, the emulation on the CPU), and
2. it is on: a GPU has verified its machine code (`ops/verified.py`), or it was asked for by name, and
3. it does these arguments: a kernel may be narrower than its op, for example in dtypes and head widths.

The first such kernel in the order of `KERNELS` runs, or else the torch composition of the op. Where 3. is the reason
that none does, kernels that were asked for raise ValueError instead, and those that are on by themselves warn, so that
nothing falls back in silence.

Kernels are asked for with `use_kernels`, or for a whole process with the environment variable AAPT_KERNELS: `verified`
(the default), `all`, `none`, or names with commas between them.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from aapt_fast.ops._load import extension_or_none
from aapt_fast.ops.verified import is_verified

KERNELS = (
    "channel_concat/portable",
    "channel_concat_noise/portable",
    "clean_frame/portable",
    "gate_residual_norm/portable",
    "kv_write/portable",
    "linear_residual/sm90",
    "paged_attention/sm90",
    "paged_attention/portable",
    "paged_attention/sm90_overlap",
    "paged_attention/sm90_cluster",
    "paged_attention/sm90_split",
    "philox_normal/portable",
)
"""Every kernel there is, for each op the preferred one first.

Variants that a GPU has yet to compare come last.
"""

WORDS = ("verified", "all", "none")


@dataclass(frozen=True)
class Selection:
    """Which kernels are on, and in which compiled module."""

    names: tuple[str, ...]
    extension: ModuleType | None = None  # None: aapt_fast._C

    def module(self) -> ModuleType | None:
        """The compiled module, or None where there is none."""
        return self.extension if self.extension is not None else extension_or_none()

    def asks_for(self, kernel: str) -> bool:
        """True if this kernel shall run, verified or not."""
        return "all" in self.names or kernel in self.names

    def allows(self, kernel: str, module: ModuleType, device: torch.device) -> bool:
        """True if this kernel is on."""
        return self.asks_for(kernel) or ("verified" in self.names and is_verified(kernel, module, device))


@functools.cache
def _selection_of_the_process() -> Selection:
    return Selection(_checked(tuple(os.environ.get("AAPT_KERNELS", "verified").split(",")), "AAPT_KERNELS"))


_selection: ContextVar[Selection | None] = ContextVar("aapt_fast_kernels", default=None)


def selection() -> Selection:
    """What `use_kernels` or AAPT_KERNELS has chosen."""
    return _selection.get() or _selection_of_the_process()


@contextmanager
def use_kernels(*names: str, extension: ModuleType | None = None) -> Iterator[None]:
    """Choose the kernels that run inside the `with` block, in this thread.

    Args:
        names: kernels such as "paged_attention/portable", or one of "all", "none" and "verified". A kernel asked for by
            name (or by "all") runs though no GPU has verified it, and raises ValueError for arguments it does not do.
        extension: the compiled module to use; None means `aapt_fast._C`.

    Raises:
        ValueError: an unknown name.
    """
    token = _selection.set(Selection(_checked(names, "names"), extension))
    try:
        yield
    finally:
        _selection.reset(token)


def _checked(names: tuple[str, ...], argument: str) -> tuple[str, ...]:
    known = {*WORDS, *KERNELS}
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(f"{argument}: expected some of {', '.join(sorted(known))}, got {', '.join(unknown) or 'none'}")
    return names


def run_kernel(op: str, device: torch.device, launch: Callable[[Callable[..., Any], tuple[int, int]], Any]) -> Any:
    """Run the kernel that is on for `op`, or say that there is none.

    Args:
        op: name of the op.
        device: where its tensors are.
        launch: called with the compiled function and the stream argument; allocates, calls and returns the result.

    Returns:
        What `launch` returned, or None if the torch composition has to run.

    Raises:
        ValueError: a kernel that was asked for does not do these arguments.
        RuntimeError: the launch failed, or a kernel was asked for on a GPU and the compiled module does not have it.
    """
    selected = selection()
    if selected.names == ("none",):
        return None
    module = selected.module()
    usable = module is not None and runs_on(module, device)
    missing, obstacles = [], []
    for kernel in KERNELS:
        if kernel.split("/")[0] != op:
            continue
        function = getattr(module, kernel.replace("/", "_"), None) if usable else None
        if function is None:
            missing.append(kernel)
        elif selected.allows(kernel, module, device):
            try:
                return launch(function, stream_of(device))
            except module.Unsupported as obstacle:
                if kernel in selected.names:
                    raise
                obstacles.append((kernel, obstacle))
    if device.type == "cuda" and any(selected.asks_for(kernel) for kernel in missing):
        raise RuntimeError(f"{missing[0]}: expected a build of aapt_fast with this kernel and CUDA, got {module}")
    if obstacles and "all" in selected.names:
        raise obstacles[-1][1]
    for kernel, obstacle in obstacles:
        warnings.warn(f"{kernel} does not run: {obstacle}; {op} runs as a torch composition", stacklevel=4)
    return None


def kernel_is_on(op: str, device: torch.device) -> bool:
    """Whether a kernel of `op` is there and on for a device; on the CPU one of an emulated build. Torch asks once."""
    selected = selection()
    module = None if selected.names == ("none",) else selected.module()
    if module is None or not runs_on(module, device):
        return False
    kernels = [kernel for kernel in KERNELS if kernel.split("/")[0] == op and hasattr(module, kernel.replace("/", "_"))]
    return any(selected.allows(kernel, module, device) for kernel in kernels)


# What torch.compiler.assume_constant_result does, which would import the whole compiler with this package.
kernel_is_on._dynamo_marked_constant = True  # type: ignore[attr-defined]


def runs_on(module: ModuleType, device: torch.device) -> bool:
    """True if kernels of the compiled module can run on tensors of this device."""
    info = _build_info(module)
    return (device.type == "cpu" and info["emulated"]) or (device.type == "cuda" and info["cuda"])


@functools.cache
def _build_info(module: ModuleType) -> dict[str, Any]:
    return module.build_info()


def stream_of(device: torch.device) -> tuple[int, int]:
    """(device index, handle of its current stream), as the compiled functions take it."""
    if device.type != "cuda":
        return (0, 0)
    stream = torch.cuda.current_stream(device)
    return (stream.device_index, stream.cuda_stream)


DTYPE_CODES = {
    torch.float32: 0,
    torch.bfloat16: 1,
    torch.float16: 2,
    torch.int32: 3,
    torch.int64: 4,
    torch.float8_e4m3fn: 5,
}
"""Codes of csrc/common/types.h, which the module repeats as `_C.dtypes`."""


def view(tensor: torch.Tensor | None) -> tuple[int, int, tuple[int, ...], tuple[int, ...]] | None:
    """A tensor [...] as the compiled functions take it: (address, dtype code, shape, strides in elements)."""
    if tensor is None:
        return None
    return tensor.data_ptr(), DTYPE_CODES.get(tensor.dtype, -1), tuple(tensor.shape), tensor.stride()
