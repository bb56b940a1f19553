# SPDX-License-Identifier: Apache-2.0
"""Patch embedding of noise, recycled frame and controls, concatenated on channels (the input of every step).

With x = cat([noised, recycled, control], channels) of 2C + Cc channels and patches of p x p, token (r, s) is

    tokens[b, r * (w / p) + s, :] = weight . pixel_unshuffle(x, p)[b, :, r, s] + bias

so the columns of `weight` are ordered (channel, row in patch, column in patch), as in a Conv2d weight flattened from
dimension 1. A kernel reads the sources where they lie and never builds x; with noise it makes the noise as it goes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import linear, pixel_shuffle, pixel_unshuffle

from aapt_fast.errors import require, require_device, require_shape
from aapt_fast.ops._checks import check_inference, check_tensor
from aapt_fast.ops._library import library
from aapt_fast.ops.kernels import run_kernel, view
from aapt_fast.ops.philox import check_seed_and_step

IMPLEMENTATIONS = {
    "cpu": "torch composition: cat, pixel_unshuffle, linear",
    "cuda": "torch composition: cat, pixel_unshuffle, linear",
}

library.define(
    "channel_concat(Tensor noised, Tensor recycled, Tensor? control, Tensor weight, Tensor? bias, SymInt patch)"
    " -> Tensor"
)
library.define(
    "channel_concat_noise(Tensor recycled, Tensor? control, Tensor weight, Tensor? bias, SymInt patch,"
    " Tensor seed, Tensor step) -> (Tensor, Tensor)"
)


def channel_concat(
    noised: torch.Tensor,
    recycled: torch.Tensor,
    control: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    patch: int,
) -> torch.Tensor:
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
    require_shape("noised", noised, "B", "C", "h", "w")
    _check(recycled, control, weight, bias, patch)
    # Under autocast the dtypes may differ here: all of them are cast.
    check_tensor("noised", noised, recycled.shape, _common_dtype(noised, recycled), recycled.device)
    return torch.ops.aapt.channel_concat.default(noised, recycled, control, weight, bias, patch)


def channel_concat_noise(
    recycled: torch.Tensor,
    control: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    patch: int,
    seed: torch.Tensor,
    step: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`channel_concat` with noise from `philox_normal` in the first place. Inference only.

    Args:
        recycled: [B, C, h, w], the previous frame.
        control: [B, Cc, h, w], or None.
        weight: [d, (2C + Cc) * patch * patch].
        bias: [d], or None.
        patch: side of a patch in latent pixels.
        seed: int64 [B], one seed per session.
        step: int64 [B], the step index of each session.

    Returns:
        tokens: [B, (h / patch) * (w / patch), d].
        noise: [B, C, h, w] in recycled.dtype, the numbers that went into the tokens.

    Raises:
        ValueError: wrong shape, dtype or device of an argument.
        RuntimeError: an input requires a gradient while gradients are recorded.
    """
    _check(recycled, control, weight, bias, patch)
    check_seed_and_step(seed, step, recycled.shape[0])
    require_device("seed", seed, recycled.device)
    check_inference("channel_concat_noise", recycled, control, weight, bias)
    return torch.ops.aapt.channel_concat_noise.default(recycled, control, weight, bias, patch, seed, step)


def _common_dtype(tensor: torch.Tensor, like: torch.Tensor) -> torch.dtype:
    """The dtype that `tensor` must have to go with `like`: any floating point one under autocast."""
    autocast = torch.is_autocast_enabled(like.device.type)
    return tensor.dtype if autocast and tensor.is_floating_point() else like.dtype


def _check(
    recycled: torch.Tensor,
    control: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    patch: int,
) -> None:
    require_shape("recycled", recycled, "B", "C", "h", "w")
    require(recycled.is_floating_point(), "recycled", "a floating point dtype", recycled.dtype)
    batch, channels, height, width = recycled.shape
    require(
        patch > 0 and height % patch == 0 and width % patch == 0, "patch", f"a divisor of {height} and {width}", patch
    )
    total = 2 * channels
    if control is not None:
        require_shape("control", control, batch, "Cc", height, width)
        check_tensor("control", control, control.shape, _common_dtype(control, recycled), recycled.device)
        total += control.shape[1]
    require_shape("weight", weight, "d", total * patch * patch)
    check_tensor("weight", weight, weight.shape, _common_dtype(weight, recycled), recycled.device)
    if bias is not None:
        check_tensor("bias", bias, weight.shape[:1], _common_dtype(bias, recycled), recycled.device)


def _patches(sources: list[torch.Tensor], patch: int) -> torch.Tensor:
    """[B, C_i, h, w] each -> [B, N, sum(C_i) * patch^2]."""
    return pixel_unshuffle(torch.cat(sources, 1), patch).flatten(2).transpose(1, 2).contiguous()


def _tokens(
    noised: torch.Tensor,
    recycled: torch.Tensor,
    control: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    patch: int,
) -> torch.Tensor:
    def launch(kernel: Callable[..., None], stream: tuple[int, int]) -> torch.Tensor:
        tokens = _empty_tokens(noised, recycled, control, weight, bias, patch)
        sources = (view(noised), view(recycled), view(control))
        kernel(*sources, view(weight), view(bias), patch, view(tokens), stream)
        return tokens

    computed = run_kernel("channel_concat", noised.device, launch)
    if computed is not None:
        return computed
    sources = [noised, recycled] if control is None else [noised, recycled, control]
    return linear(_patches(sources, patch), weight, bias)


def _tokens_and_noise(
    recycled: torch.Tensor,
    control: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    patch: int,
    seed: torch.Tensor,
    step: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    def launch(kernel: Callable[..., None], stream: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        tokens, noise = _empty_tokens_and_noise(recycled, control, weight, bias, patch, seed, step)
        sources = (view(recycled), view(control), view(weight), view(bias), patch, view(seed), view(step))
        kernel(*sources, view(tokens), view(noise), stream)
        return tokens, noise

    computed = run_kernel("channel_concat_noise", recycled.device, launch)
    if computed is not None:
        return computed
    noise = torch.ops.aapt.philox_normal.default(seed, step, recycled.shape[1:]).to(recycled.dtype)
    return torch.ops.aapt.channel_concat.default(noise, recycled, control, weight, bias, patch), noise


def _autocast(device_type: str) -> Callable[..., torch.Tensor]:
    """The op under `torch.autocast(device_type)`: cast everything but float64 to the dtype in force, then call it."""

    def cast_and_embed(*arguments: Any) -> torch.Tensor:
        dtype = torch.get_autocast_dtype(device_type)
        *tensors, patch = arguments
        cast = [x if x is None or x.dtype == torch.float64 else x.to(dtype) for x in tensors]
        with torch.autocast(device_type, enabled=False):
            return torch.ops.aapt.channel_concat.default(*cast, patch)

    return cast_and_embed


library.impl("channel_concat", _tokens, "CPU")
library.impl("channel_concat", _tokens, "CUDA")
library.impl("channel_concat_noise", _tokens_and_noise, "CPU")
library.impl("channel_concat_noise", _tokens_and_noise, "CUDA")
library.impl("channel_concat", _autocast("cpu"), "AutocastCPU")
library.impl("channel_concat", _autocast("cuda"), "AutocastCUDA")


@torch.library.register_fake("aapt::channel_concat", lib=library)
def _empty_tokens(
    noised: torch.Tensor,
    recycled: torch.Tensor,
    control: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    patch: int,
) -> torch.Tensor:
    batch, _, height, width = noised.shape
    return noised.new_empty((batch, (height // patch) * (width // patch), weight.shape[0]))


@torch.library.register_fake("aapt::channel_concat_noise", lib=library)
def _empty_tokens_and_noise(
    recycled: torch.Tensor,
    control: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    patch: int,
    seed: torch.Tensor,
    step: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    return _empty_tokens(recycled, recycled, control, weight, bias, patch), recycled.new_empty(recycled.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    noised, recycled, control, weight, _, ctx.patch = inputs
    ctx.save_for_backward(noised, recycled, control, weight)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """With X the patches [B N, columns] and G = grad [B N, d]: dX = G W, dW = G^T X, dbias = sum of G."""
    noised, recycled, control, weight = ctx.saved_tensors
    sources = [noised, recycled] if control is None else [noised, recycled, control]
    needs_sources, needs_weight, needs_bias = ctx.needs_input_grad[:3], *ctx.needs_input_grad[3:5]
    source_grads: tuple[torch.Tensor | None, ...] = (None, None, None)
    weight_grad = None
    if any(needs_sources):
        grid = [size // ctx.patch for size in noised.shape[2:]]
        pixels = pixel_shuffle((grad @ weight).transpose(1, 2).unflatten(2, grid), ctx.patch)
        source_grads = (*pixels.split([source.shape[1] for source in sources], 1), None)[:3]
    if needs_weight:
        weight_grad = grad.flatten(0, 1).T @ _patches(sources, ctx.patch).flatten(0, 1)
    return *source_grads, weight_grad, grad.sum((0, 1)) if needs_bias else None, None


torch.library.register_autograd("aapt::channel_concat", _backward, setup_context=_setup, lib=library)
