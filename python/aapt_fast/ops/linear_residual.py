# SPDX-License-Identifier: Apache-2.0
"""A linear layer that ends in a gated residual sum, as one op.

    out = x + gate * (inputs weight^T + bias)

A missing gate counts as 1, a missing bias as 0. The product is accumulated in float32. The kernel adds before it
rounds, so the update itself is never in memory; the composition rounds the product first, as a linear layer does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from aapt_fast.errors import require, require_shape
from aapt_fast.ops._checks import check_inference, check_tensor
from aapt_fast.ops._library import library
from aapt_fast.ops.kernels import kernel_is_on, run_kernel, view

IMPLEMENTATIONS = {
    "cpu": "torch composition: linear, addcmul",
    "cuda": "torch composition: linear, addcmul",
}

HALVES = (torch.bfloat16, torch.float16)

library.define(
    "linear_residual(Tensor x, Tensor inputs, Tensor weight, Tensor? bias, Tensor? gate) -> Tensor",
)


def linear_residual(
    x: torch.Tensor,
    inputs: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    gate: torch.Tensor | None,
) -> torch.Tensor:
    """Add the gated output of a linear layer to the residual stream. Inference only.

    Args:
        x: [B, N, d], any floating point dtype: the residual stream.
        inputs: [B, N, k], same dtype: what the layer is given.
        weight: [d, k], same dtype.
        bias: [d], same dtype, or None.
        gate: [d] or [B, 1, d], same dtype, or None.

    Returns:
        [B, N, d] in x.dtype.

    Raises:
        ValueError: wrong shape, dtype or device of an argument.
        RuntimeError: a gradient is asked for.
    """
    require_shape("x", x, "B", "N", "d")
    require(x.is_floating_point(), "x", "a floating point dtype", x.dtype)
    batch, tokens, width = x.shape
    require_shape("inputs", inputs, batch, tokens, "k")
    depth = inputs.shape[2]
    check_tensor("inputs", inputs, (batch, tokens, depth), x.dtype, x.device)
    check_tensor("weight", weight, (width, depth), x.dtype, x.device)
    if bias is not None:
        check_tensor("bias", bias, (width,), x.dtype, x.device)
    if gate is not None:
        require(gate.dim() in (1, 3), "gate", f"shape [{width}] or [{batch}, 1, {width}]", list(gate.shape))
        check_tensor("gate", gate, (width,) if gate.dim() == 1 else (batch, 1, width), x.dtype, x.device)
    check_inference("linear_residual", x, inputs, weight, bias, gate)
    return torch.ops.aapt.linear_residual.default(x, inputs, weight, bias, gate)


def adds_in_its_epilogue(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether a kernel of this op is on for a residual stream x [B, N, d] and a layer's weight [d, k].

    What a model asks to choose between this op and a linear layer whose sum the next norm makes. Never with gradients.
    """
    if x.dtype not in HALVES or weight.dtype != x.dtype:
        return False
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return False
    hopper = x.device.type == "cuda" and torch.cuda.get_device_capability(x.device)[0] == 9
    return hopper and kernel_is_on("linear_residual", x.device)


def _composition(
    x: torch.Tensor,
    inputs: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    gate: torch.Tensor | None,
) -> torch.Tensor:
    update = F.linear(inputs, weight, bias)
    wide = torch.promote_types(x.dtype, torch.float32)
    x = x.to(wide)
    summed = x + update if gate is None else torch.addcmul(x, gate.to(wide), update.to(wide))
    return summed.to(inputs.dtype).contiguous()


def _forward(
    x: torch.Tensor,
    inputs: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    gate: torch.Tensor | None,
) -> torch.Tensor:
    def launch(kernel: Callable[..., None], stream: tuple[int, int]) -> torch.Tensor:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        kernel(view(x), view(inputs), view(weight), view(bias), view(gate), view(out), stream)
        return out

    computed = run_kernel("linear_residual", x.device, launch)
    return _composition(x, inputs, weight, bias, gate) if computed is None else computed


library.impl("linear_residual", _forward, "CPU")
library.impl("linear_residual", _forward, "CUDA")


@torch.library.register_fake("aapt::linear_residual", lib=library)
def _fake(
    x: torch.Tensor,
    inputs: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    gate: torch.Tensor | None,
) -> torch.Tensor:
    return x.new_empty(x.shape)
