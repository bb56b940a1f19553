# SPDX-License-Identifier: Apache-2.0
"""Muon in float32: `torch.optim.Muon`, state and settings included, with another arithmetic.

torch orthogonalises in bfloat16. A CPU without bfloat16 instructions emulates them: for matrices as small as ours that
takes twenty times as long, and more than the rest of a training step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from aapt_fast.errors import require


class Float32Muon(torch.optim.Muon):
    """`torch.optim.Muon` (Jordan et al. 2024) whose products of matrices are in float32; weights [rows, columns]."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move the weights that have a gradient. Raises ValueError for a closure."""
        require(closure is None, "closure", "None: losses are computed before a step", closure)
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    towards = self.towards(weight, group)
                    update = orthogonal(towards, group["ns_coefficients"], group["ns_steps"], group["eps"])
                    self.move(weight, update, group, weight.shape)

    def towards(self, weight: Tensor, group: dict[str, Any]) -> Tensor:
        """The direction [rows, columns] in which gradient and momentum pull a weight; the momentum takes its step."""
        state = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        average: Tensor = state["momentum_buffer"]
        assert weight.grad is not None
        average.lerp_(weight.grad, 1 - group["momentum"])
        return weight.grad.lerp(average, group["momentum"]) if group["nesterov"] else average

    def move(self, weight: Tensor, update: Tensor, group: dict[str, Any], shape: Sequence[int]) -> None:
        """Move a weight [rows, columns], or rows of one, against `update`; `shape` is that of the whole matrix."""
        rows, columns = shape
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(update, alpha=-group["lr"] * math.sqrt(max(1, rows / columns)))


def orthogonal(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """The matrix [rows, columns] with all its singular values near 1, by `steps` Newton-Schulz iterations."""
    a, b, c = coefficients
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp_min(eps)
    for _ in range(steps):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T
