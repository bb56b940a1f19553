# SPDX-License-Identifier: Apache-2.0
"""Gate, residual sum, RMSNorm and modulation between two sub-layers of a transformer block, as one op.

    residual = x + gate * y
    normed   = residual / sqrt(mean(residual^2) + eps) * (1 + scale) + shift        mean over d

A missing gate or scale counts as "leave it out", a missing shift as 0, and without y the residual is x itself.
Everything is computed in float32 and rounded once at the end.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aapt_fast.errors import require, require_device, require_shape
from aapt_fast.ops._checks import check_tensor
from aapt_fast.ops.kernels import Kernel, kernel_is_on
from aapt_fast.ops.registry import register


def gate_residual_norm(
    x: Tensor, y: Tensor | None, gate: Tensor | None, scale: Tensor | None, shift: Tensor | None, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
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
    residual, normed = _call(x, y, gate, scale, shift, eps)
    return (x.to(normed.dtype) if y is None else residual), normed


def _check_modulation(argument: str, tensor: Tensor | None, x: Tensor) -> None:
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
    x: Tensor, y: Tensor | None, gate: Tensor | None, scale: Tensor | None, shift: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    residual = x.to(wide)
    if y is not None:  # which torch widens element by element, as it does the modulation
        residual = residual + y if gate is None else torch.addcmul(residual, gate, y)
    normed = torch.nn.functional.rms_norm(residual, x.shape[-1:], None, eps)
    if scale is not None:
        factor = 1 + scale.to(wide)
        normed = normed * factor if shift is None else torch.addcmul(shift.to(wide), normed, factor)
    elif shift is not None:
        normed = normed + shift.to(wide)
    return (x if y is None else residual.to(x.dtype).contiguous()), normed.to(x.dtype).contiguous()


def _torch_code(x: Tensor, y: Tensor | None, *modulation: Any) -> tuple[Tensor, Tensor]:
    residual, normed = _composition(x, y, *modulation)
    return (x.new_empty(0) if y is None else residual), normed  # an op may not return its input


def _allocate(x: Tensor, y: Tensor | None, *_: Any) -> tuple[Tensor, Tensor]:
    """Contiguous residual and normed; the residual has no elements where it would be x itself."""
    return x.new_empty(0 if y is None else x.shape), x.new_empty(x.shape)


def _bind(kernel: Kernel, *arguments: Any) -> tuple[tuple[Tensor, Tensor], tuple[Any, ...]]:
    x, y, gate, scale, shift, eps = arguments
    residual, normed = _allocate(x, y)
    return (residual, normed), (x, y, gate, scale, shift, None if y is None else residual, normed, eps)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, y, gate, scale, shift, ctx.eps = inputs
    ctx.save_for_backward(x if y is None else output[0], y, gate, scale)
    ctx.shift = None if shift is None else (shift.shape, shift.dtype)


def _backward(ctx: Any, residual_grad: Tensor, normed_grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of x, y, gate, scale, shift from those of residual and normed, [B, N, d].

    With u = residual * inverse, inverse = 1 / sqrt(mean(residual^2) + eps), g the gradient of normed and
    g' = g * (1 + scale), the gradient of x is that of the residual plus

        inverse * (g' - u * mean(g' * u)).

    The gradient of y is that of x times gate. Those of gate, scale and shift are the sums of (gradient of x) * y,
    g * u and g over the dimensions that they were broadcast along.
    """
    residual, y, gate, scale = ctx.saved_tensors
    _, needs_y, needs_gate, needs_scale, needs_shift, _ = ctx.needs_input_grad
    dtype, wide = residual.dtype, torch.promote_types(residual.dtype, torch.float32)
    normed_grad, residual = normed_grad.to(wide), residual.to(wide)
    inverse = torch.rsqrt(residual.square().mean(-1, keepdim=True) + ctx.eps)
    unit = residual * inverse

    unit_grad = normed_grad if scale is None else normed_grad * (1 + scale.to(wide))
    x_grad = inverse * (unit_grad - unit * (unit_grad * unit).mean(-1, keepdim=True))
    if y is not None:
        x_grad = residual_grad.to(wide) + x_grad
    y_grad = gate_grad = scale_grad = shift_grad = None
    if needs_y:
        y_grad = (x_grad if gate is None else x_grad * gate.to(wide)).to(y.dtype)
    if needs_gate:
        gate_grad = (x_grad * y.to(wide)).sum_to_size(gate.shape).to(gate.dtype)
    if needs_scale:
        scale_grad = (normed_grad * unit).sum_to_size(scale.shape).to(scale.dtype)
    if needs_shift:
        shape, shift_dtype = ctx.shift
        shift_grad = normed_grad.sum_to_size(shape).to(shift_dtype)
    return x_grad.to(dtype), y_grad, gate_grad, scale_grad, shift_grad, None


_call = register(
    "gate_residual_norm(Tensor x, Tensor? y, Tensor? gate, Tensor? scale, Tensor? shift, float eps)"
    " -> (Tensor, Tensor)",
    _torch_code,
    allocate=_allocate,
    bind=_bind,
    backward=(_setup, _backward),
    autocast=torch.float32,
)
