# SPDX-License-Identifier: Apache-2.0
"""Comparisons whose failure message says where and by how much."""

from __future__ import annotations

import torch

from aapt_fast.verification.compare import error_and_limit
from aapt_fast.verification.compare import relative_l2 as relative_l2


def assert_near(actual: torch.Tensor, expected: torch.Tensor, tolerance: float, name: str = "tensor") -> None:
    """Same shape, same inf/nan pattern, and max |actual - expected| <= tolerance * max(1, max |expected|)."""
    assert actual.shape == expected.shape, f"{name}: shape {list(actual.shape)}, expected {list(expected.shape)}"
    actual, expected = actual.detach().double(), expected.detach().double()
    assert torch.equal(actual.isfinite(), expected.isfinite()), f"{name}: another pattern of inf/nan"
    finite = expected.isfinite()
    error = torch.where(finite, actual - expected, torch.zeros_like(expected)).abs()
    if error.numel() == 0:
        return
    limit = tolerance * max(1.0, expected[finite].abs().max().item() if finite.any() else 1.0)
    worst = int(error.argmax())
    position = [int(i) for i in torch.unravel_index(torch.tensor(worst), error.shape)]
    assert error.max() <= limit, (
        f"{name}: |{actual.flatten()[worst]:.6g} - {expected.flatten()[worst]:.6g}| = {error.max():.3g} "
        f"at {position}, limit {limit:.3g}"
    )


def assert_within_twice_torch(
    actual: torch.Tensor, oracle: torch.Tensor, torch_result: torch.Tensor, floor: float = 1e-6
) -> None:
    """max error of `actual` against the fp32 `oracle` is at most twice that of plain torch in the same dtype."""
    error, limit = error_and_limit(actual, oracle, torch_result, floor)
    assert error <= limit, f"error {error:.3g} against the fp32 oracle, plain torch has {limit / 2:.3g}"
