# SPDX-License-Identifier: Apache-2.0
"""Source, device and dtype of weights: checks of these arguments before a file is touched, and the best dtype."""

from __future__ import annotations

import torch

from aapt_fast.errors import require, require_type
from aapt_fast.models.files.find import require_path

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""The dtypes that every model computes in."""
WAN_DTYPES = (*DTYPES, torch.float64)
"""The dtypes that Wan transformers and Wan VAEs compute in, and that weights can be kept in."""


def checked_placement(
    path: object, device: object, dtype: object, dtypes: tuple[torch.dtype, ...] = WAN_DTYPES
) -> tuple[torch.device, torch.dtype | None]:
    """The device and dtype that a loader's arguments mean; a dtype of None stays None.

    Raises TypeError and ValueError as `require_path`, `require_usable_device` and `require_usable_dtype` do.
    """
    require_path("path", path)
    return require_usable_device(device), None if dtype is None else require_usable_dtype(dtype, dtypes)


def require_usable_device(device: object, argument: str = "device") -> torch.device:
    """The device of this name or number.

    Raises ValueError unless it is the CPU or a GPU that this torch can use, TypeError if it names none.
    """
    require_type(argument, device, str, torch.device, int)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        found = torch.device(device)  # type: ignore[call-overload]
    except RuntimeError:
        found = torch.device("meta")
    fits = (found.index or 0) < {"cpu": 1, "cuda": count}.get(found.type, 0)
    there = ", ".join(["cpu", *(f"cuda:{index}" for index in range(count))])
    got = "nothing" if device == "" else device
    why = ", and torch finds no GPU here" if found.type == "cuda" and not count else ""
    require(fits, argument, f"a device that this torch can use ({there})", f"{got}{why}")
    return found


def require_usable_dtype(
    dtype: object, dtypes: tuple[torch.dtype, ...] = DTYPES, argument: str = "dtype"
) -> torch.dtype:
    """The dtype, also from torch's name of it, as "bfloat16", "half" or "torch.float32".

    Raises ValueError unless it is among `dtypes`, TypeError if it is neither a dtype nor a name.
    """
    *most, last = map(str, dtypes)
    expected = f"{', '.join(most)} or {last}" if most else last
    if not isinstance(dtype, str | torch.dtype):
        raise TypeError(f"{argument}: expected {expected}, got {dtype!r}")
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    require(found in dtypes, argument, expected, dtype or "nothing")
    assert isinstance(found, torch.dtype)
    return found


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device has instructions for it (GPUs from Ampere on, CPUs with AVX-512 bf16), else float32."""
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)  # an older one emulates it, slower than float32
    else:
        fast = torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32
