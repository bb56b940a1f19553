# SPDX-License-Identifier: Apache-2.0
"""Checks of the arguments for source, device and dtype of weights, made before a file is touched."""

from __future__ import annotations

import os

import torch

from aapt_fast.errors import require, require_type

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""The dtypes that every model computes in."""
WAN_DTYPES = (*DTYPES, torch.float64)
"""The dtypes that Wan transformers and Wan VAEs compute in, and that weights can be kept in."""


def require_path(argument: str, path: object) -> None:
    """Raise TypeError unless `path` is a str or a path."""
    require_type(argument, path, str, os.PathLike)


def require_usable_device(device: object, argument: str = "device") -> None:
    """Raise ValueError unless `device` is the CPU or a GPU that this torch can use, TypeError if it names none."""
    require_type(argument, device, str, torch.device, int)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        found = torch.device(device)  # type: ignore[call-overload]
    except RuntimeError:
        found = None
    fits = found is not None and (found.type == "cpu" or (found.type == "cuda" and (found.index or 0) < count))
    there = ", ".join(["cpu", *(f"cuda:{index}" for index in range(count))])
    require(fits, argument, f"cpu or cuda[:n] that this torch can use ({there})", device or "nothing")


def require_usable_dtype(dtype: object, dtypes: tuple[torch.dtype, ...] = DTYPES) -> None:
    """Raise TypeError unless `dtype` is one of torch, ValueError unless it is among `dtypes`."""
    expected = " or ".join([", ".join(map(str, dtypes[:-1])), str(dtypes[-1])])
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype: expected {expected}, got {dtype!r}")
    require(dtype in dtypes, "dtype", expected, dtype)
