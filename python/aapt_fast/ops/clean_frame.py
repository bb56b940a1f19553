# SPDX-License-Identifier: Apache-2.0
"""The end of an evaluation: from the tokens of the last linear layer to clean frames, as one op.

The features of a token are ordered (channel, row in patch, column in patch), as `pixel_shuffle` has them and as
`channel_concat` reads them. With patches of p x p, token f (h / p) (w / p) + r (w / p) + s of a clip is patch (r, s) of
the velocity of frame f, and

    clean = noised - t * velocity

A kernel reads each token and each number of `noised` once and writes each number of the result once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from aapt_fast.errors import require, require_device, require_dtype, require_shape
from aapt_fast.ops._checks import check_tensor
from aapt_fast.ops.kernels import Kernel, kernel_is_on
from aapt_fast.ops.registry import register


def clean_frame(tokens: Tensor, noised: Tensor, t: Tensor, patch: int) -> Tensor:
    """Clean frames from noised ones and the velocity, which comes as tokens.

    Differentiable. Computes in, and returns, the dtype of `noised`; autocast changes nothing.

    Args:
        tokens: [B, F * (h / patch) * (w / patch), C * patch * patch], any floating point dtype: the velocity.
        noised: [B, C, F, h, w], float32 or float64; h and w are multiples of `patch`.
        t: [B], same dtype: the timestep of each row.
        patch: side of a patch in latent pixels.

    Returns:
        [B, C, F, h, w] in noised.dtype, contiguous.

    Raises:
        ValueError: wrong shape, dtype or device of an argument.
    """
    require_shape("noised", noised, "B", "C", "F", "h", "w")
    require_dtype("noised", noised, torch.float32, torch.float64)
    batch, channels, frames, height, width = noised.shape
    fits = patch > 0 and height % patch == 0 and width % patch == 0
    require(fits, "patch", f"a divisor of {height} and {width}", patch)
    patches = frames * (height // patch) * (width // patch)
    require_shape("tokens", tokens, batch, patches, channels * patch * patch)
    require(tokens.is_floating_point(), "tokens", "a floating point dtype", tokens.dtype)
    require_device("tokens", tokens, noised.device)
    check_tensor("t", t, noised.shape[:1], noised.dtype, noised.device)
    if torch.compiler.is_compiling() and noised.device.type == "cpu" and not kernel_is_on("clean_frame", noised.device):
        return _composition(tokens, noised, t, patch)  # the compiler puts it together with its neighbours
    return _call(tokens, noised, t, patch)


def _clip(tokens: Tensor, shape: torch.Size, patch: int) -> Tensor:
    """Tokens [B, F N, C p^2] -> [B, C, F, h, w], the `shape`."""
    batch, channels, frames, height, width = shape
    grid = (height // patch, width // patch, channels * patch * patch)
    patches = tokens.reshape(batch * frames, *grid).permute(0, 3, 1, 2)
    return pixel_shuffle(patches, patch).unflatten(0, (batch, frames)).transpose(1, 2)


def _composition(tokens: Tensor, noised: Tensor, t: Tensor, patch: int) -> Tensor:
    velocity = _clip(tokens, noised.shape, patch).to(noised.dtype)
    return (noised - t.view(-1, 1, 1, 1, 1) * velocity).contiguous()


def _allocate(tokens: Tensor, noised: Tensor, *_: Any) -> Tensor:
    return noised.new_empty(noised.shape)


def _bind(kernel: Kernel, tokens: Tensor, noised: Tensor, t: Tensor, patch: int) -> tuple[Tensor, tuple[Any, ...]]:
    clean = _allocate(tokens, noised)
    return clean, (tokens, noised, t, patch, clean)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tokens, noised, t, ctx.patch = inputs
    ctx.shape, ctx.dtype = noised.shape, tokens.dtype
    # of the tokens only the gradient of t has any use
    ctx.save_for_backward(t, tokens if ctx.needs_input_grad[2] else None)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """With U the velocity as a clip: dnoised = grad, dU = -t grad, dt = -sum of grad U over a row of the batch."""
    t, tokens = ctx.saved_tensors
    tokens_grad = t_grad = None
    if ctx.needs_input_grad[0]:
        frames = (-t.view(-1, 1, 1, 1, 1) * grad).transpose(1, 2).flatten(0, 1)
        patches = pixel_unshuffle(frames, ctx.patch).flatten(2).transpose(1, 2)
        tokens_grad = patches.reshape(len(t), -1, patches.shape[-1]).to(ctx.dtype)
    if tokens is not None:
        t_grad = -(grad * _clip(tokens, ctx.shape, ctx.patch).to(grad.dtype)).sum((1, 2, 3, 4))
    return tokens_grad, grad, t_grad, None


_call = register(
    "clean_frame(Tensor tokens, Tensor noised, Tensor t, SymInt patch) -> Tensor",
    _composition,
    allocate=_allocate,
    bind=_bind,
    backward=(_setup, _backward),
)
