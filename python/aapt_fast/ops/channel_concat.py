# SPDX-License-Identifier: Apache-2.0
"""Patch embedding of noise, recycled frame and controls, concatenated on channels (the input of every step).

With x = cat([noised, recycled, control], channels) of 2C + Cc channels and patches of p x p, token (r, s) is

    tokens[b, r * (w / p) + s, :] = weight . pixel_unshuffle(x, p)[b, :, r, s] + bias

so the columns of `weight` are ordered (channel, row in patch, column in patch), as in a Conv2d weight flattened from
dimension 1. A kernel reads the sources where they lie and never builds x.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, pixel_shuffle, pixel_unshuffle

from aapt_fast.errors import require, require_shape
from aapt_fast.ops._checks import check_tensor
from aapt_fast.ops.kernels import Kernel
from aapt_fast.ops.registry import register


def channel_concat(
    noised: Tensor, recycled: Tensor, control: Tensor | None, weight: Tensor, bias: Tensor | None, patch: int
) -> Tensor:
    """Embed one latent frame per row. Differentiable; under autocast everything is cast to its dtype.

    Args:
        noised: [B, C, h, w], any floating point dtype; h and w are multiples of `patch`.
        recycled: [B, C, h, w], the previous frame.
        control: [B, Cc, h, w], or None.
        weight: [d, (2C + Cc) * patch * patch].
        bias: [d], or None.
        patch: side of a patch in latent pixels.

    Returns:
        tokens [B, (h / patch) * (w / patch), d], in the common dtype of the arguments.

    Raises:
        ValueError: wrong shape, dtype or device of an argument.
    """
    require_shape("recycled", recycled, "B", "C", "h", "w")
    require(recycled.is_floating_point(), "recycled", "a floating point dtype", recycled.dtype)
    batch, channels, height, width = recycled.shape
    require_shape("noised", noised, *recycled.shape)
    fits = patch > 0 and height % patch == 0 and width % patch == 0
    require(fits, "patch", f"a divisor of {height} and {width}", patch)
    total = 2 * channels
    if control is not None:
        require_shape("control", control, batch, "Cc", height, width)
        total += control.shape[1]
    require_shape("weight", weight, "d", total * patch * patch)
    if bias is not None:
        require_shape("bias", bias, weight.shape[0])
    cast = torch.is_autocast_enabled(recycled.device.type)  # then the dtypes may differ here
    for argument, tensor in (("noised", noised), ("control", control), ("weight", weight), ("bias", bias)):
        if tensor is not None:
            dtype = tensor.dtype if cast and tensor.is_floating_point() else recycled.dtype
            check_tensor(argument, tensor, tensor.shape, dtype, recycled.device)
    return _call(noised, recycled, control, weight, bias, patch)


def _patches(sources: list[Tensor], patch: int) -> Tensor:
    """[B, C_i, h, w] each -> [B, N, sum(C_i) * patch^2]."""
    return pixel_unshuffle(torch.cat(sources, 1), patch).flatten(2).transpose(1, 2).contiguous()


def _composition(
    noised: Tensor, recycled: Tensor, control: Tensor | None, weight: Tensor, bias: Tensor | None, patch: int
) -> Tensor:
    sources = [noised, recycled] if control is None else [noised, recycled, control]
    return linear(_patches(sources, patch), weight, bias)


def _allocate(noised: Tensor, recycled: Any, control: Any, weight: Tensor, bias: Any, patch: int) -> Tensor:
    batch, _, height, width = noised.shape
    return noised.new_empty((batch, (height // patch) * (width // patch), weight.shape[0]))


def _bind(kernel: Kernel, *arguments: Any) -> tuple[Tensor, tuple[Any, ...]]:
    tokens = _allocate(*arguments)
    return tokens, (*arguments, tokens)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    noised, recycled, control, weight, _, ctx.patch = inputs
    ctx.save_for_backward(noised, recycled, control, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """With X the patches [B N, columns] and G = grad [B N, d]: dX = G W, dW = G^T X, dbias = sum of G."""
    noised, recycled, control, weight = ctx.saved_tensors
    sources = [noised, recycled] if control is None else [noised, recycled, control]
    *needs_sources, needs_weight, needs_bias, _ = ctx.needs_input_grad
    source_grads: list[Tensor | None] = [None, None, None]
    weight_grad = bias_grad = None
    if any(needs_sources):
        grid = [size // ctx.patch for size in noised.shape[2:]]
        pixels = pixel_shuffle((grad @ weight).transpose(1, 2).unflatten(2, grid), ctx.patch)
        source_grads[: len(sources)] = pixels.split([source.shape[1] for source in sources], 1)
    if needs_weight:
        weight_grad = grad.flatten(0, 1).T @ _patches(sources, ctx.patch).flatten(0, 1)
    if needs_bias:
        bias_grad = grad.sum((0, 1))
    return *source_grads, weight_grad, bias_grad, None


_call = register(
    "channel_concat(Tensor noised, Tensor recycled, Tensor? control, Tensor weight, Tensor? bias, SymInt patch)"
    " -> Tensor",
    _composition,
    allocate=_allocate,
    bind=_bind,
    backward=(_setup, _backward),
    autocast="lower",
)
