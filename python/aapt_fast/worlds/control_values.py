# SPDX-License-Identifier: Apache-2.0
"""Controls as users give them (tensors, arrays, lists of numbers) -> a tensor of values that make sense."""

from __future__ import annotations

import numpy
import torch
from torch import Tensor

from aapt_fast.errors import require, require_plain

ALLOWED = "a tensor, an array or lists of numbers"
FARTHEST = 1e4
"""Largest x and y, in widths and heights of the picture, and depth, in metres, of a joint that a step takes. Maps drawn
of such a joint still fit into float16."""


def read_numbers(control: object, argument: str) -> Tensor:
    """A control as a tensor. Numbers in lists are read in float64, whatever torch's default is.

    Raises TypeError, naming `argument`, for something else.
    """
    kind = type(control).__name__
    if not (hasattr(control, "__array__") or isinstance(control, list | tuple)):
        raise TypeError(f"{argument}: expected {ALLOWED}, got {kind}")
    if isinstance(control, Tensor):
        values = control.detach() if control.requires_grad else control
    elif isinstance(control, list | tuple) and _has_tensors(control):
        values = _stacked([read_numbers(part, argument) for part in control], argument)
    else:
        values = _of_numpy(control, argument)
    require_plain(argument, values)
    if values.dtype == torch.bool:
        raise TypeError(f"{argument}: expected {ALLOWED}, got {values.dtype}")
    return values


def require_values(argument: str, values: Tensor, largest: float) -> None:
    """Raise ValueError unless all of `values` [...] are finite and within -largest..largest.

    For poses [..., J, 3], `largest` is `FARTHEST`; for maps, the largest number of the dtype that computes with them.
    """
    found = float(values.abs().amax()) if values.numel() else 0.0  # nan, if one of them is
    if not found <= largest:
        require(bool(values.isfinite().all()), argument, "finite values", "nan or inf")
        unit = ", places as fractions of the picture and depths in metres" if largest == FARTHEST else ""
        require(False, argument, f"values within -{largest:g}..{largest:g}{unit}", f"one of size {found:g}")


def require_entry(argument: str, control: object) -> None:
    """Raise TypeError or ValueError unless `control` is that of one video frame: [J, 3] or [C, h, w], finite."""
    values = read_numbers(control, argument)
    is_pose = values.ndim == 2 and values.shape[1] == 3
    fits = values.numel() > 0 and (is_pose or values.ndim == 3)
    require(fits, argument, "shape [J, 3] (a pose) or [C, h, w] (maps), of one video frame", list(values.shape))
    require_values(argument, values.float(), FARTHEST if is_pose else torch.finfo(torch.float32).max)


def _has_tensors(parts: list[object] | tuple[object, ...]) -> bool:
    """True for lists of tensors, and for lists of such lists."""
    while parts and isinstance(parts[0], list | tuple):
        parts = parts[0]
    return any(isinstance(part, Tensor) for part in parts)


def _stacked(parts: list[Tensor], argument: str) -> Tensor:
    """The parts [...] of a list in one tensor [parts, ...]; raises TypeError for unequal ones."""
    kinds = dict.fromkeys(f"shape {list(part.shape)} on {part.device}" for part in parts)
    if len(kinds) > 1:
        raise TypeError(f"{argument}: expected {ALLOWED}, got a list of unequal parts: {' and '.join(kinds)}")
    return torch.stack(parts)


def _of_numpy(control: object, argument: str) -> Tensor:
    """A tensor of lists or an array; raises TypeError for ragged lists and for values that are no numbers."""
    kind = type(control).__name__
    try:
        array = numpy.array(control)
    except (TypeError, ValueError, RuntimeError) as error:
        got = f"{kind} with parts of unequal lengths, or that are no numbers"
        raise TypeError(f"{argument}: expected {ALLOWED}, got {got}") from error
    try:
        return torch.as_tensor(array)
    except TypeError as error:  # torch has no such dtype
        raise TypeError(f"{argument}: expected {ALLOWED}, got {kind} with values of dtype {array.dtype}") from error
