# SPDX-License-Identifier: Apache-2.0
"""Registration of ops with torch, in the namespace `torch.ops.aapt`: one call of `register` per op.

Calls go through `torch.library.Library.define` and `impl`, at a third of the cost of `torch.library.custom_op`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from aapt_fast.ops.calls import observers
from aapt_fast.ops.kernels import Bind, run_kernel, running_kernel

COMPOSITION = "torch composition"
FUSED = "torch's fused attention"

_library = torch.library.Library("aapt", "DEF")


@dataclass(frozen=True)
class Body:
    """The implementation of an op for one device type: a kernel that is on and takes the arguments, or torch code."""

    op: str
    torch_code: Callable[..., Any]
    words: str
    """The name of the torch code in reports."""
    bind: Bind | None
    """None for an op without kernels."""

    def __call__(self, *arguments: Any) -> Any:
        """The op for these arguments, the first of which is a tensor [...]. Open observers are told what ran."""
        calls = [observer.begin(self.op) for observer in observers.get()]
        ran = None
        try:
            device = arguments[0].device
            launched = None if self.bind is None else run_kernel(self.op, device, self.bind, arguments)
            result, ran = launched or (self.torch_code(*arguments), self.words)
        finally:
            for call in reversed(calls):
                call.end(ran)
        return result


OPS: dict[str, dict[str, Body]] = {}
"""Every op by name, and its bodies by device type."""


def implementation(op: str, device: torch.device) -> str:
    """The kernel or the torch code, in words, that a call of `op` on `device` chooses now."""
    return running_kernel(op, device) or OPS[op][device.type].words


def register(
    schema: str,
    torch_code: Callable[..., Any],
    *,
    allocate: Callable[..., Any],
    cuda: tuple[Callable[..., Any], str] | None = None,
    bind: Bind | None = None,
    backward: tuple[Callable[..., None], Callable[..., Any]] | None = None,
    autocast: torch.dtype | Literal["lower"] | None = None,
) -> Callable[..., Any]:
    """Register an op.

    Args:
        schema: as for `torch.library.define`, without defaults; the first argument is a tensor.
        torch_code: computes the op with torch operators, on the CPU and, unless `cuda` is given, on GPUs.
        allocate: empty results of the right shape, dtype and strides, for torch.compile.
        cuda: (torch code for GPUs, its name in reports).
        bind: what to pass to a compiled kernel; None for an op without kernels.
        backward: (setup_context, backward) of `torch.library.register_autograd`.
        autocast: cast floating point arguments to this dtype under autocast; "lower" means the dtype in force and
            leaves float64 alone; None changes nothing. Torch code never sees autocast itself.

    Returns:
        The function to call: the op's only overload.
    """
    name = schema.partition("(")[0]
    cuda_code, cuda_words = cuda or (torch_code, COMPOSITION)
    _library.define(schema)
    OPS[name] = {
        "cpu": Body(name, partial(_without_autocast, torch_code), COMPOSITION, bind),
        "cuda": Body(name, partial(_without_autocast, cuda_code), cuda_words, bind),
    }
    call = getattr(torch.ops.aapt, name).default
    for device_type, body in OPS[name].items():
        _library.impl(name, body, device_type.upper())
        if autocast == "lower":
            _library.impl(name, partial(_call_in_lower_precision, call, device_type), f"Autocast{device_type.upper()}")
        elif autocast is not None:
            torch.library.register_autocast(f"aapt::{name}", device_type, autocast, lib=_library)
    torch.library.register_fake(f"aapt::{name}", allocate, lib=_library)
    if backward is not None:
        setup, gradients = backward
        torch.library.register_autograd(f"aapt::{name}", gradients, setup_context=setup, lib=_library)
    return call


def _without_autocast(torch_code: Callable[..., Any], *arguments: Any) -> Any:
    device_type = arguments[0].device.type
    if not torch.is_autocast_enabled(device_type):
        return torch_code(*arguments)
    with torch.autocast(device_type, enabled=False):  # would multiply float32 in a lower precision
        return torch_code(*arguments)


def _call_in_lower_precision(call: Callable[..., Any], device_type: str, *arguments: Any) -> Any:
    dtype = torch.get_autocast_dtype(device_type)

    def cast(argument: Any) -> Any:
        floating = isinstance(argument, torch.Tensor) and argument.is_floating_point()
        return argument.to(dtype) if floating and argument.dtype != torch.float64 else argument

    with torch.autocast(device_type, enabled=False):
        return call(*map(cast, arguments))
