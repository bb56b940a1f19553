# SPDX-License-Identifier: Apache-2.0
"""Agreement of two implementations of an op."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aapt_fast.errors import require

LARGEST_DIFFERENCE = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 1e-4}
"""Relative difference (L2) of two implementations above which one of them is wrong."""


def relative_l2(actual: Tensor, expected: Tensor) -> float:
    """Compute ||actual - expected|| / ||expected|| of tensors [...] in float64."""
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).norm() / expected.norm().clamp_min(1e-300))


def error_and_limit(actual: Tensor, oracle: Tensor, torch_result: Tensor, floor: float = 1e-6) -> tuple[float, float]:
    """Largest error of `actual` [...] against the float32 `oracle`, and twice that of plain torch in the same dtype.

    `floor` is added to the limit. Equal infinities, and NaN in the same places, are no error; a NaN that only one of
    the two has makes the error NaN, which no limit allows.
    """
    return _largest_error(actual, oracle), 2 * _largest_error(torch_result, oracle) + floor


def _largest_error(actual: Tensor, oracle: Tensor) -> float:
    actual, oracle = actual.detach().double(), oracle.detach().double()
    same = (actual == oracle) | (actual.isnan() & oracle.isnan())
    errors = torch.where(same, 0.0, actual - oracle).abs()
    return float(errors.max()) if errors.numel() else 0.0


def require_finite(results: Sequence[Tensor]) -> None:
    """Raise ValueError if one of the tensors [...] has inf or nan."""
    for number, tensor in enumerate(results):
        require(bool(tensor.isfinite().all()), f"output {number}", "finite values", "inf or nan")


def require_agreement(results: Sequence[Tensor], expected: Sequence[Tensor], dtype: torch.dtype) -> None:
    """Raise ValueError if a tensor [...] differs from the expected one by more than `LARGEST_DIFFERENCE`."""
    limit = LARGEST_DIFFERENCE[dtype]
    for number, (tensor, other) in enumerate(zip(results, expected, strict=True)):
        difference = relative_l2(tensor, other.to(tensor.device))
        words = f"a relative difference (L2) of at most {limit:.0e}"
        require(difference <= limit, f"output {number}", words, f"{difference:.2e}")  # raises for nan, too
