# SPDX-License-Identifier: Apache-2.0
"""The errors users meet, and the one way to raise them: argument, expected, got."""

from __future__ import annotations

import re
import sys
import warnings
from importlib import import_module
from numbers import Integral
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line answers --help without torch
    import torch

OLDEST_TORCH = (2, 9)
NO_TORCH = "aapt_fast needs PyTorch 2.9 or newer, and none is installed here: pip install torch"


def import_with_torch(module: str) -> ModuleType:
    """Import a module of this package that needs torch.

    Raises ImportError, which says what to install, where torch is missing or older than `OLDEST_TORCH`.
    """
    try:
        found = import_module(module)
    except Exception as error:  # an old torch lacks all kinds of things
        without = isinstance(error, ModuleNotFoundError) and error.name == "torch"
        if (sentence := NO_TORCH if without else _old_torch()) is not None:
            raise ImportError(sentence) from error
        raise
    if (sentence := _old_torch()) is not None:
        raise ImportError(sentence)
    return found


def _old_torch() -> str | None:
    """One sentence if the torch that is loaded is too old; None if it is not, or if none is loaded."""
    version = str(getattr(sys.modules.get("torch"), "__version__", ""))
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or (int(numbers[1]), int(numbers[2])) >= OLDEST_TORCH:
        return None
    return f"aapt_fast needs PyTorch 2.9 or newer, and {version} is installed here: pip install --upgrade torch"


class CheckpointError(ValueError):
    """A weight file is damaged, incomplete or belongs to another model; the message names file and key."""


class PoolExhausted(RuntimeError):
    """The page pool has no free page left; the message says how many were asked for and how many exist."""


class EngineFull(PoolExhausted):
    """All places of a stream engine are taken; the message says how many there are."""


class SessionClosed(RuntimeError):
    """A closed session was used."""


class RankFailed(RuntimeError):
    """A rank of a job died or hung, and all others have been ended; the message names the rank."""


class RankHung(RuntimeError):
    """An exchange failed because a rank did not take part in it; the message names the rank."""


class RanksDiffer(RuntimeError):
    """Ranks have different frames, so that their stream cannot go on: a fault of the machine or of this package."""


def require(condition: bool, argument: str, expected: object, got: object) -> None:
    """Raise `ValueError("<argument>: expected <expected>, got <got>")` unless `condition` holds."""
    if not condition:
        raise ValueError(f"{argument}: expected {expected}, got {got}")


def require_type(argument: str, value: object, *types: type) -> None:
    """Raise `TypeError` unless `value` is an instance of one of `types`."""
    if not isinstance(value, types):
        names = " or ".join(kind.__name__ for kind in types)
        raise TypeError(f"{argument}: expected {names}, got {type(value).__name__}")


def require_integer(argument: str, value: object) -> None:
    """Raise `TypeError` unless `value` is an integer, Python's or NumPy's; a bool is none."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{argument}: expected an integer, got {type(value).__name__}")


def require_seed(seed: int) -> None:
    """Raise `TypeError` for no integer, `ValueError` beyond 64 bits."""
    require_integer("seed", seed)
    require(-(2**63) <= seed < 2**63, "seed", "a signed 64-bit integer", seed)


def require_plain(argument: str, tensor: torch.Tensor) -> None:
    """Raise `TypeError` unless `tensor` holds real numbers one after the other: on meta, sparse, quantised ones do not.

    Torch's own messages for these name an operator, and not the argument.
    """
    import torch

    found = {
        "one on the device meta, which holds none": tensor.device.type == "meta",
        "a nested one; give a tensor with .to_padded_tensor() or one part": tensor.is_nested,
        f"a quantised one ({tensor.dtype}); give its .dequantize()": tensor.is_quantized,
        f"one of layout {tensor.layout}; give its .to_dense()": tensor.layout != torch.strided,
        f"complex ones ({tensor.dtype}); give its .real": tensor.is_complex(),
    }
    for got, is_so in found.items():
        if is_so:
            raise TypeError(f"{argument}: expected a tensor with real numbers in memory, got {got}")


def require_shape(argument: str, tensor: torch.Tensor, *shape: int | str) -> None:
    """Check the shape of `tensor`: an int must match, a str names a free dimension (shown in the message)."""
    import torch

    require_type(argument, tensor, torch.Tensor)
    actual = tuple(tensor.shape)
    fits = len(actual) == len(shape) and all(
        isinstance(want, str) or want == have for want, have in zip(shape, actual, strict=True)
    )
    if not fits:
        expected = "[" + ", ".join(str(want) for want in shape) + "]"
        raise ValueError(f"{argument}: expected shape {expected}, got {list(actual)}")


def require_dtype(argument: str, tensor: torch.Tensor, *dtypes: torch.dtype) -> None:
    """Check that the dtype of `tensor` is one of `dtypes`."""
    require(tensor.dtype in dtypes, argument, " or ".join(str(dtype) for dtype in dtypes), tensor.dtype)


def require_device(argument: str, tensor: torch.Tensor, device: torch.device) -> None:
    """Check that `tensor` lives on `device`."""
    require(tensor.device == device, argument, f"a tensor on {device}", f"one on {tensor.device}")


def warn_caller(message: str) -> None:
    """Give a UserWarning with the line outside of this package that has led here, whatever lies between."""
    package, level = __name__.partition(".")[0], 2
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(f"{package}."):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
