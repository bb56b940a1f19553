# SPDX-License-Identifier: Apache-2.0
"""Norm and SiLU of frames, written into a ring, where the next convolution reads them.

    out[b, (out_start + t) mod S'] = silu(norm(x[b, t]) * gamma + beta)          silu(v) = v / (1 + exp(-v))

Without groups the norm is that of the Wan decoder, over the C channels of a pixel, and there is no beta:

    norm(x) = x / max(sqrt(sum of x^2), eps) * sqrt(C)

With G groups it is GroupNorm of each frame by itself: mean and variance over all pixels of the frame and the C / G
channels of a group,

    norm(x) = (x - mean) / sqrt(variance + eps)

Everything is computed in float32 and rounded once at the end. Kernels add up in a fixed order: always the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aapt_fast.errors import require, require_device, require_dtype, require_shape
from aapt_fast.ops._checks import check_inference, check_vector
from aapt_fast.ops.kernels import Kernel
from aapt_fast.ops.registry import register
from aapt_fast.ops.ring import check_ring, check_start, write_frames

# A kernel cuts a frame into chunks of pixels, one per block, and every block adds up the sums of all chunks: enough for
# four frames to fill a large GPU, and few beside the pixels of a chunk.
_CHUNK_PIXELS = 64
_MOST_CHUNKS = 128

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def norm_silu(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor | None,
    groups: int,
    eps: float,
    out: Tensor,
    out_start: Tensor | None,
) -> None:
    """Normalise T frames, apply SiLU and write them into slots of a ring (`ops/ring.py`). Inference only.

    Args:
        x: [B, T, H, W, C], contiguous; float32, float64, bfloat16 or float16.
        gamma: floating point [C].
        beta: floating point [C], or None; None without groups.
        groups: 0 for the norm of a pixel, else the number of groups of GroupNorm, a divisor of C.
        eps: without groups the smallest norm to divide by (1e-12 in the Wan decoder), else added to the variance.
        out: [B, S', H, W, C], contiguous, same dtype as x, changed in place; S' >= T. Shares no memory with x.
        out_start: int32 [1], 0 or larger: the slot of the first frame; None for 0. Taken modulo S'.

    Raises:
        ValueError: wrong shape, dtype, device or strides of an argument.
        RuntimeError: an input requires a gradient while gradients are recorded.
    """
    require_shape("x", x, "B", "T", "H", "W", "C")
    require_dtype("x", x, *DTYPES)
    require(x.is_contiguous(), "x", "a contiguous tensor", f"strides {list(x.stride())}")
    batch, frames, height, width, channels = x.shape
    check_vector("gamma", gamma, (channels,), x.device)
    divides = groups == 0 or (groups > 0 and channels % groups == 0)
    require(divides, "groups", f"0 or a divisor of {channels} channels", groups)
    if beta is not None:
        require(groups > 0, "beta", "None, as there are no groups", "a tensor")
        check_vector("beta", beta, (channels,), x.device)
    check_ring("out", out, (batch, "S'", height, width, channels), frames)
    require_dtype("out", out, x.dtype)
    require_device("out", out, x.device)
    check_start("out_start", out_start, out)
    check_inference("norm_silu", x, gamma, beta, out, training="torch's own norms")
    _call(x, gamma, beta, groups, eps, out, out_start)


def normed_silu(x: Tensor, gamma: Tensor, beta: Tensor | None, groups: int, eps: float) -> Tensor:
    """Compute the norm of x [B, T, H, W, C] and SiLU by torch code -> the same shape and dtype."""
    wide = x if x.dtype == torch.float64 else x.float()
    gain = gamma.to(wide.dtype)
    if groups == 0:
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).clamp_min(eps)
        y = (wide * (gain * x.shape[4] ** 0.5)).div_(norm)
    else:
        images = wide.flatten(0, 1).permute(0, 3, 1, 2)
        shift = None if beta is None else beta.to(wide.dtype)
        y = F.group_norm(images, groups, gain, shift, eps).permute(0, 2, 3, 1).unflatten(0, x.shape[:2])
    return F.silu(y).to(x.dtype)


def _composition(
    x: Tensor, gamma: Tensor, beta: Tensor | None, groups: int, eps: float, out: Tensor, out_start: Tensor | None
) -> None:
    write_frames(normed_silu(x, gamma, beta, groups, eps), out, out_start)


def _allocate(*_: Any) -> None:
    """Nothing: the op changes `out` and returns None."""


def _bind(kernel: Kernel, *arguments: Any) -> tuple[None, tuple[Any, ...]]:
    x, gamma, beta, groups, eps, out, out_start = arguments
    partial = None
    if groups:
        chunks = min(-(-x.shape[2] * x.shape[3] // _CHUNK_PIXELS), _MOST_CHUNKS)
        partial = x.new_empty((x.shape[0] * x.shape[1], max(chunks, 1), groups, 2), dtype=torch.float32)
    return None, (x, gamma, beta, groups, eps, out, out_start, partial)


_call = register(
    "norm_silu(Tensor x, Tensor gamma, Tensor? beta, SymInt groups, float eps, Tensor(a!) out, Tensor? out_start)"
    " -> ()",
    _composition,
    allocate=_allocate,
    bind=_bind,
)
