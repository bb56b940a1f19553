# SPDX-License-Identifier: Apache-2.0
"""Gate, residual sum, RMSNorm and modulation between two sub-layers of a transformer block, as one op.

    residual = x + gate * y
    normed   = residual / sqrt(mean(residual^2) + eps) * (1 + scale) + shift        mean over d

A missing gate or scale counts as "leave it out", a missing shift as 0, and without y the residual is x itself.
Everything is computed in float32 and rounded once at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from aapt_fast.errors import require, require_device, require_shape
from aapt_fast.ops._checks import check_tensor
from aapt_fast.ops._library import library
from aapt_fast.ops.kernels import kernel_is_on, run_kernel, view

IMPLEMENTATIONS = {
    "cpu": "torch composition: addcmul, rms_norm, addcmul",
    "cuda": "torch composition: addcmul, rms_norm, addcmul",
}

library.define(
    "gate_residual_norm(Tensor x, Tensor y, Tensor? gate, Tensor? scale, Tensor? shift, float eps) -> (Tensor, Tensor)"
)
library.define("modulated_norm(Tensor x, Tensor? scale, Tensor? shift, float eps) -> Tensor")


def gate_residual_norm(
    x: torch.Tensor,
    y: torch.Tensor | None,
    gate: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    eps: float = 1e-6,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add a gated sub-layer output to the residual stream and prepare the next sub-layer's input.

    Differentiable. Under autocast the op runs in, and returns, float32.

    Args:
        x: [B, N, d], any floating point dtype: the residual stream.
        y: [B, N, d], same dtype: the sub-layer's output, or None.
        gate: [d], [B, 1, d] or [B, N, d], any floating point dtype, or None; needs y.
        scale: likewise, or None.
        shift: likewise, or None.
        eps: added to the mean square.

    Returns:
        residual: [B, N, d] in x.dtype; x itself if y is None.
        normed: [B, N, d] in x.dtype.

    Raises:
        ValueError: wrong shape, dtype or device of an argument, or a gate without y.
    """
    require_shape("x", x, "B", "N", "d")
    require(x.is_floating_point(), "x", "a floating point dtype", x.dtype)
    if y is not None:
        cast = torch.is_autocast_enabled(x.device.type) and y.is_floating_point()
        check_tensor("y", y, x.shape, y.dtype if cast else x.dtype, x.device)
    require(y is not None or gate is None, "gate", "None, as y is None", "a tensor")
    _check_modulation("gate", gate, x)
    _check_modulation("scale", scale, x)
    _check_modulation("shift", shift, x)
    compiles = torch.compiler.is_compiling() and x.device.type == "cpu"
    if compiles and not kernel_is_on("gate_residual_norm", x.device):
        # the compiler puts these operators together with their neighbours
        return _composition(x.float() if torch.is_autocast_enabled("cpu") else x, y, gate, scale, shift, eps)
    if y is None:
        normed = torch.ops.aapt.modulated_norm.default(x, scale, shift, eps)
        return x.to(normed.dtype), normed
    return torch.ops.aapt.gate_residual_norm.default(x, y, gate, scale, shift, eps)


def _check_modulation(argument: str, tensor: torch.Tensor | None, x: torch.Tensor) -> None:
    if tensor is None:
        return
    batch, tokens, width = x.shape
    shape = tuple(tensor.shape)
    fits = shape in ((width,), (batch, 1, width), (batch, tokens, width))
    if fits and tensor.is_floating_point() and tensor.device == x.device:
        return
    expected = f"shape [{width}], [{batch}, 1, {width}] or [{batch}, {tokens}, {width}]"
    require(fits, argument, expected, list(shape))
    require(tensor.is_floating_point(), argument, "a floating point dtype", tensor.dtype)
    require_device(argument, tensor, x.device)


def _composition(
    x: torch.Tensor,
    y: torch.Tensor | None,
    gate: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    residual = x.to(wide)
    if y is not None:
        y = y.to(wide)
        residual = residual + y if gate is None else torch.addcmul(residual, gate.to(wide), y)
    normed = torch.nn.functional.rms_norm(residual, x.shape[-1:], None, eps)
    if scale is not None:
        factor = 1 + scale.to(wide)
        normed = normed * factor if shift is None else torch.addcmul(shift.to(wide), normed, factor)
    elif shift is not None:
        normed = normed + shift.to(wide)
    return (x if y is None else residual.to(x.dtype).contiguous()), normed.to(x.dtype).contiguous()


def _kernel(
    x: torch.Tensor,
    y: torch.Tensor | None,
    gate: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor] | None:
    def launch(kernel: Callable[..., None], stream: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        residual = None if y is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
        normed = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        inputs = (view(tensor) for tensor in (x, y, gate, scale, shift))
        kernel(*inputs, view(residual), view(normed), eps, stream)
        return x if residual is None else residual, normed

    return run_kernel("gate_residual_norm", x.device, launch)


def _forward(
    x: torch.Tensor,
    y: torch.Tensor | None,
    gate: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    computed = _kernel(x, y, gate, scale, shift, eps)
    return _composition(x, y, gate, scale, shift, eps) if computed is None else computed


def _forward_norm(x: torch.Tensor, scale: torch.Tensor | None, shift: torch.Tensor | None, eps: float) -> torch.Tensor:
    return _forward(x, None, None, scale, shift, eps)[1]


for device in ("CPU", "CUDA"):
    library.impl("gate_residual_norm", _forward, device)
    library.impl("modulated_norm", _forward_norm, device)
    for name in ("gate_residual_norm", "modulated_norm"):
        torch.library.register_autocast(f"aapt::{name}", device.lower(), torch.float32, lib=library)


@torch.library.register_fake("aapt::gate_residual_norm", lib=library)
def _fake(
    x: torch.Tensor,
    y: torch.Tensor,
    gate: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


@torch.library.register_fake("aapt::modulated_norm", lib=library)
def _fake_norm(x: torch.Tensor, scale: torch.Tensor | None, shift: torch.Tensor | None, eps: float) -> torch.Tensor:
    return x.new_empty(x.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    _, y, gate, scale, shift, ctx.eps = inputs
    ctx.save_for_backward(output[0], y, gate, scale)
    ctx.shift = None if shift is None else (shift.shape, shift.dtype)


def _setup_norm(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, scale, shift, ctx.eps = inputs
    ctx.save_for_backward(x, scale)
    ctx.shift = None if shift is None else (shift.shape, shift.dtype)


def _backward(ctx: Any, residual_grad: torch.Tensor, normed_grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """The gradient of x is that of the residual, and that of y has the factor gate; that of the gate is the sum of

    (the gradient of the residual) * y over the dimensions it was broadcast along.
    """
    residual, y, gate, scale = ctx.saved_tensors
    wide = torch.promote_types(residual.dtype, torch.float32)
    _, needs_y, needs_gate, *needs_modulation, _ = ctx.needs_input_grad
    norm_grad, scale_grad, shift_grad = _norm_gradients(ctx, residual, scale, normed_grad, *needs_modulation)
    x_grad = residual_grad.to(wide) + norm_grad
    y_grad = gate_grad = None
    if needs_y:
        y_grad = (x_grad if gate is None else x_grad * gate.to(wide)).to(y.dtype)
    if needs_gate:
        gate_grad = (x_grad * y.to(wide)).sum_to_size(gate.shape).to(gate.dtype)
    return x_grad.to(residual.dtype), y_grad, gate_grad, scale_grad, shift_grad, None


def _backward_norm(ctx: Any, normed_grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    x, scale = ctx.saved_tensors
    _, *needs_modulation, _ = ctx.needs_input_grad
    x_grad, scale_grad, shift_grad = _norm_gradients(ctx, x, scale, normed_grad, *needs_modulation)
    return x_grad.to(x.dtype), scale_grad, shift_grad, None


def _norm_gradients(
    ctx: Any,
    residual: torch.Tensor,
    scale: torch.Tensor | None,
    normed_grad: torch.Tensor,
    needs_scale: bool,
    needs_shift: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """What the norm gives to the residual, in float32 or wider, and the gradients of scale and shift.

    With u = residual * inverse and g the gradient of normed these are

    inverse * (g' - u * mean(g' * u)),   g' = g * (1 + scale),

    and the sums of g * u and of g over the dimensions that scale and shift were broadcast along.
    """
    wide = torch.promote_types(residual.dtype, torch.float32)
    normed_grad, residual = normed_grad.to(wide), residual.to(wide)
    inverse = torch.rsqrt(residual.square().mean(-1, keepdim=True) + ctx.eps)
    unit = residual * inverse

    unit_grad = normed_grad if scale is None else normed_grad * (1 + scale.to(wide))
    norm_grad = inverse * (unit_grad - unit * (unit_grad * unit).mean(-1, keepdim=True))
    scale_grad = shift_grad = None
    if needs_scale:
        assert scale is not None
        scale_grad = (normed_grad * unit).sum_to_size(scale.shape).to(scale.dtype)
    if needs_shift:
        shape, dtype = ctx.shift
        shift_grad = normed_grad.sum_to_size(shape).to(dtype)
    return norm_grad, scale_grad, shift_grad


torch.library.register_autograd("aapt::gate_residual_norm", _backward, setup_context=_setup, lib=library)
torch.library.register_autograd("aapt::modulated_norm", _backward_norm, setup_context=_setup_norm, lib=library)
