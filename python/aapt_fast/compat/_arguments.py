# SPDX-License-Identifier: Apache-2.0
"""Argument checks shared by the functions of this room."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from aapt_fast.errors import require_type

SUPPORTED: dict[str, tuple[Any, ...]] = {
    "dropout_p": (0,),
    "causal": (False,),
    "window_size": ((-1, -1),),
    "softcap": (0,),
    "alibi_slopes": (None,),
    "deterministic": (False, True),
    "rotary_cos": (None,),
    "rotary_sin": (None,),
    "rotary_interleaved": (True,),
    "rotary_seqlens": (None,),
    "cache_leftpad": (None,),
    "num_splits": (0, 1),
    "qv": (None,),
    "q_descale": (None,),
    "k_descale": (None,),
    "v_descale": (None,),
    "attention_chunk": (0,),
    "pack_gqa": (None,),
    "sm_margin": (0,),
    "cu_seqlens_k_new": (None,),
    "scheduler_metadata": (None,),
    "version": (None, 2, 3),
    "fa_version": (None, 2, 3),
    "dtype": (torch.bfloat16, torch.float16, torch.float32),
}
"""Values that an argument of this name may have, in every function. An argument that is not listed may have any."""


def require_supported(
    function: str,
    arguments: Mapping[str, Any],
    tensors: tuple[str, ...] = ("q", "k", "v"),
    supported: Mapping[str, tuple[Any, ...]] = SUPPORTED,
) -> None:
    """Check the arguments of a function, which are its `locals()` before it does anything else.

    Args:
        function: its name, for messages.
        arguments: name -> value.
        tensors: names of the arguments that must be tensors; numpy arrays are refused.
        supported: name -> values that it may have.

    Raises:
        TypeError: an argument in `tensors` is no tensor.
        NotImplementedError: a value is not supported. `deterministic` is not where gradients on a GPU are recorded,
            whose backward pass is torch's own. The forward pass is always deterministic.
    """
    for name in tensors:
        require_type(name, arguments[name], Tensor)
    for name in supported.keys() & arguments.keys():
        _require_value(function, name, arguments[name], supported[name])
    if arguments.get("deterministic") and torch.is_grad_enabled():
        differentiated = [arguments[name] for name in tensors if arguments[name].requires_grad]
        if not all(tensor.is_cpu for tensor in differentiated):
            _require_value(function, "deterministic", True, (False,))


def _require_value(function: str, name: str, value: Any, supported: tuple[Any, ...]) -> None:
    comparable = tuple(value) if isinstance(value, list) else value
    is_tensor = isinstance(value, Tensor)
    if any(value is want or (want is not None and not is_tensor and comparable == want) for want in supported):
        return
    wanted = " or ".join(f"{name}={each!r}" for each in supported)
    got = f"a tensor {list(value.shape)}" if is_tensor else repr(value)
    raise NotImplementedError(f"{function}: only {wanted} is supported, got {got}")
