# SPDX-License-Identifier: Apache-2.0
"""The table of compiled kernels, and the rule that chooses one for a call of an op.

A kernel is named `op/variant`, for example "paged_attention/portable". It is on for a device when

1. the compiled module has it and runs there: a module with CUDA on GPUs, the emulation on the CPU;
2. it is compiled for this GPU; and
3. the user has named it or said `all`, or the record of this GPU (record.py) says that it is right and fast there.

The first kernel that is on and takes the arguments runs; without one, torch operators do. Kernels that the user has
named or that `all` turns on come in the order of `KERNELS`, those of the record come with the fastest first. A kernel
refuses arguments by raising the compiled module's `Unsupported`, a ValueError. The caller sees that error if the user
named the kernel; otherwise the next kernel is tried, and one warning per reason says what does not run.

Users choose with `use_kernels`, or for a whole process with the environment variable AAPT_KERNELS: `auto` (the default:
kernels that `aapt-fast verify` has found right and fast on this GPU), `all`, `none`, or names with commas between them.
"""

from __future__ import annotations

import functools
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeAlias

import torch
from torch import Tensor

from aapt_fast.ops._load import extension_or_none
from aapt_fast.ops.driver import code_obstacle, driver_obstacle
from aapt_fast.ops.record import Found, look_up

FLOATS = (torch.float32,)
HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel: the op that it computes, the arguments that it takes, the GPUs that it is compiled for."""

    op: str
    variant: str
    dtypes: tuple[torch.dtype, ...] = HALVES
    widths: tuple[int, ...] | None = None
    """Head widths; None for an op without heads."""
    architecture: str = "sm_80"
    """The oldest GPU that runs it; a final "a", as in "sm_90a", excludes newer ones."""

    @property
    def name(self) -> str:
        """The name that users write."""
        return f"{self.op}/{self.variant}"

    @property
    def function(self) -> str:
        """The name of its function in the compiled module."""
        return f"{self.op}_{self.variant}"

    def runs_on(self, capability: tuple[int, int]) -> bool:
        """True on a GPU of this compute capability."""
        major, minor, only = re.fullmatch(r"sm_(\d+)(\d)(a?)", self.architecture).groups()  # type: ignore[union-attr]
        oldest = int(major), int(minor)
        return capability == oldest if only else capability >= oldest

    def refusal(self, dtype: torch.dtype, width: int) -> str | None:
        """The reason why it does not take tensors of `dtype` with heads of `width`, or None."""
        if dtype not in self.dtypes:
            names = " and ".join(str(each).removeprefix("torch.") for each in self.dtypes)
            return f"{self.name} takes {names}, not {dtype}"
        if self.widths is not None and width not in self.widths:
            *others, widest = self.widths
            return f"{self.name} takes heads of width {', '.join(map(str, others))} and {widest}, not {width}"
        return None


_PORTABLE_WIDTHS, _HOPPER_WIDTHS = (56, 64, 128), (64, 128)

KERNELS = {
    kernel.name: kernel
    for kernel in (
        Kernel("channel_concat", "portable"),
        Kernel("clean_frame", "portable"),
        Kernel("gate_residual_norm", "portable", (*FLOATS, *HALVES)),
        Kernel("kv_write", "portable", widths=_PORTABLE_WIDTHS),
        Kernel("norm_silu", "portable", (*FLOATS, *HALVES)),
        Kernel("paged_attention", "sm90", widths=_HOPPER_WIDTHS, architecture="sm_90a"),
        Kernel("paged_attention", "portable", widths=_PORTABLE_WIDTHS),
        Kernel("paged_attention", "sm90_split", widths=_HOPPER_WIDTHS, architecture="sm_90a"),
        Kernel("philox_normal", "portable", FLOATS),
        Kernel("ring_conv3d", "sm90", architecture="sm_90a"),
        Kernel("ring_conv3d", "portable"),
    )
}
"""Every kernel by its name, for each op the preferred one first. `all` prefers sm90 to sm90_split until a GPU has
compared them."""

WORDS = ("auto", "all", "none")
GPU_WITHOUT_CUDA = "the machine has a GPU, but the compiled module was built without CUDA"


@dataclass(frozen=True)
class Selection:
    """The user's choice of kernels, and the compiled module that has them."""

    names: tuple[str, ...]
    extension: ModuleType | None = None
    """None: `aapt_fast._C`."""

    def module(self) -> ModuleType | None:
        """The compiled module, or None where there is none."""
        return self.extension if self.extension is not None else extension_or_none()


@functools.cache
def _selection_of_the_process() -> Selection:
    return Selection(_checked(tuple(os.environ.get("AAPT_KERNELS", "auto").split(",")), "AAPT_KERNELS"))


_selection: ContextVar[Selection | None] = ContextVar("aapt_fast_kernels", default=None)


def selection() -> Selection:
    """The choice of the innermost `use_kernels` of this thread, else that of AAPT_KERNELS."""
    return _selection.get() or _selection_of_the_process()


def use_kernels(*names: str, extension: ModuleType | None = None) -> AbstractContextManager[None]:
    """Choose the kernels that run inside the `with` block, in this thread.

    Args:
        names: kernels such as "paged_attention/portable", or "auto", "all" or "none". A kernel that is named raises
            ValueError for arguments that it does not take; with "all" torch operators compute those, with a warning.
            A named kernel that cannot run at all is an error on a GPU and a warning on a CPU.
        extension: the compiled module to use; None means `aapt_fast._C`.

    Raises:
        ValueError: an unknown name, or none; at the call, not at `with`.
    """
    return _selected(Selection(_checked(names, "names"), extension))


@contextmanager
def _selected(chosen: Selection) -> Iterator[None]:
    token = _selection.set(chosen)
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


def obstacle(kernel: Kernel, device: torch.device, selected: Selection) -> str | None:
    """The reason why `kernel` is off on `device`, or None where it is on."""
    if selected.names == ("none",):
        return "kernels are switched off"
    why = _cannot_run(kernel, device, selected)
    if why is not None or kernel.name in selected.names or "all" in selected.names:
        return why
    if "auto" not in selected.names:
        return f"the choice is {', '.join(selected.names)}"
    if device.type != "cuda":
        return "no GPU has verified it; AAPT_KERNELS=all runs it all the same"
    module = selected.module()
    assert module is not None
    return look_up(device, module).obstacle(kernel.name)


def _cannot_run(kernel: Kernel, device: torch.device, selected: Selection) -> str | None:
    """The reason why `kernel` cannot be tried on `device`, or None. A GPU may be tried if the user names the kernel."""
    module = selected.module()
    if module is None:
        return "the compiled module is missing"
    if not runs_on(module, device):
        if device.type == "cuda":
            return GPU_WITHOUT_CUDA
        return "no GPU here" if _build_info(module)["cuda"] else "the compiled module was built without CUDA"
    unfit = driver_obstacle(module, device) or code_obstacle(module, device) if device.type == "cuda" else None
    if unfit is not None:
        return unfit
    if not hasattr(module, kernel.function):
        return "the compiled module does not have it"
    if device.type == "cuda" and kernel.name not in selected.names:
        capability = torch.cuda.get_device_capability(device)
        if not kernel.runs_on(capability):
            return f"compiled for {kernel.architecture}, this GPU has {'.'.join(map(str, capability))}"
    return None


def record_for(device: torch.device, selected: Selection) -> Found | None:
    """The record of a GPU; None on a CPU, and where the GPU or the build can run no kernel."""
    module = selected.module()
    if device.type != "cuda" or module is None:
        return None
    if all(_cannot_run(kernel, device, selected) is not None for kernel in KERNELS.values()):
        return None
    return look_up(device, module)


def no_kernel_runs(device: torch.device, selected: Selection) -> str | None:
    """The reason, the same for every kernel, why none can run on `device`; None where kernels differ."""
    reasons = {_cannot_run(kernel, device, selected) for kernel in KERNELS.values()}
    return reasons.pop() if len(reasons) == 1 else None


def forget_record() -> None:
    """Read the record of each GPU again at the next call of an op: `aapt-fast verify` has written it."""
    look_up.cache_clear()
    _kernels_on.cache_clear()


@functools.lru_cache(256)
def _kernels_on(op: str, device: torch.device, selected: Selection) -> tuple[Kernel, ...]:
    """The kernels of `op` that are on, the preferred one first."""
    found: list[Kernel] = []
    off = []
    for kernel in (kernel for kernel in KERNELS.values() if kernel.op == op):
        why = obstacle(kernel, device, selected)
        if why is None:
            found.append(kernel)
        elif device.type == "cuda" and kernel.name in selected.names:
            raise RuntimeError(f"{kernel.name}: expected a kernel that can run on {device}, got none: {why}")
        else:
            off.append(f"{kernel.name} does not run: {why}")
            if kernel.name in selected.names:  # on a CPU, which never needs a kernel
                _warn(op, off[-1])
    module = selected.module()
    too_old = driver_obstacle(module, device) if off and module is not None and device.type == "cuda" else None
    if too_old is not None and selected.names != ("none",):
        _warn_once(f"{too_old}: torch's own code runs")
    elif off and not found and device.type == "cuda" and "all" in selected.names:
        _warn(op, off[0])
    elif off and "auto" in selected.names and "all" not in selected.names:
        record = record_for(device, selected)
        if record is not None and record.record is None:
            _warn_once(record.in_words())
    return tuple(sorted(found, key=lambda kernel: _rank(kernel, device, selected)))


def _rank(kernel: Kernel, device: torch.device, selected: Selection) -> float:
    """The place of a kernel that is on, smallest first: by its speed where the record has turned it on."""
    if kernel.name in selected.names or "all" in selected.names:
        return -math.inf
    found = record_for(device, selected)
    return 0.0 if found is None or found.record is None else -found.record.speed(kernel.name)


def kernels_on(op: str, device: torch.device) -> tuple[Kernel, ...]:
    """The kernels that are on for `op` on `device`, in the order in which they are tried."""
    return _kernels_on(op, device, selection())


def running_kernel(op: str, device: torch.device) -> str | None:
    """The name of the first kernel that is on for `op` on `device`, such as "paged_attention/sm90", or None."""
    on = kernels_on(op, device)
    return on[0].name if on else None


def kernel_is_on(op: str, device: torch.device) -> bool:
    """True if a kernel of `op` is on for `device`. torch.compile treats the answer as a constant."""
    return running_kernel(op, device) is not None


# The effect of torch.compiler.assume_constant_result, which would import the whole compiler with this package.
kernel_is_on._dynamo_marked_constant = True  # type: ignore[attr-defined]


Bind: TypeAlias = Callable[..., tuple[Any, tuple[Any, ...]]]
"""A kernel and the arguments of its op -> empty results, and the arguments of the compiled function but the stream."""


def run_kernel(op: str, device: torch.device, bind: Bind, arguments: tuple[Any, ...]) -> tuple[Any, str] | None:
    """Run the first kernel of `op` that is on and takes the arguments.

    Args:
        op: name of the op.
        device: where its tensors are.
        bind: allocates the results of a kernel and lists the arguments of its compiled function.
        arguments: of the op.

    Returns:
        The results and the name of the kernel, or None if torch operators have to run.

    Raises:
        ValueError: a kernel that the user named does not take these arguments.
        RuntimeError: the launch failed, or a kernel that the user named cannot run on this GPU.
    """
    selected = selection()
    module: Any = selected.module()
    refusals = []
    for kernel in _kernels_on(op, device, selected):
        results, bound = bind(kernel, *arguments)
        passed = [view(each) if isinstance(each, Tensor) else each for each in bound]
        try:
            getattr(module, kernel.function)(*passed, stream_of(device))
            return results, kernel.name
        except module.Unsupported as error:
            if kernel.name in selected.names:
                raise
            refusals.append(f"{kernel.name} does not run: {error}")
    for refusal in refusals:
        _warn(op, refusal)
    return None


def _warn(op: str, refusal: str) -> None:
    # From this line for every caller, so that Python's own filter shows each reason once.
    warnings.warn(f"{refusal}; {op} runs as a torch composition", stacklevel=1)


@functools.cache
def _warn_once(sentence: str) -> None:
    warnings.warn(f"aapt_fast: {sentence}", stacklevel=1)


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
    torch.uint8: 5,
}
"""Codes of csrc/common/types.h, which the module repeats as `_C.dtypes`."""


def view(tensor: Tensor | None) -> tuple[int, int, tuple[int, ...], tuple[int, ...]] | None:
    """A tensor [...] as the compiled functions take it: (address, dtype code, shape, strides in elements)."""
    if tensor is None:
        return None
    return tensor.data_ptr(), DTYPE_CODES.get(tensor.dtype, -1), tuple(tensor.shape), tensor.stride()
