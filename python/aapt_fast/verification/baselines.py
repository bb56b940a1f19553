# SPDX-License-Identifier: Apache-2.0
"""The ops as a user of torch would write them, and attention of other libraries.

Shapes: N tokens, S keys, H heads, D head width, d model width, C channels, h w latent grid; one session.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from aapt_fast.ops import PAGE_SLOTS
from aapt_fast.ops.ring_conv3d import spread_columns

EPS = 1e-6
BACKENDS = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
"""Backends of torch's attention on a GPU."""

LIBRARIES = {
    "FlashAttention 3": ("flash_attn_interface", "flash_attn_func"),
    "FlashInfer": ("flashinfer", "single_prefill_with_kv_cache"),
}
"""By name: module and function."""


def attention(backend: SDPBackend | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Torch's attention over contiguous q [1, H, N, D] and k, v [1, H, S, D] -> [1, N, H, D]; None: any backend."""
    if backend is None:
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def gathered_attention(
    backend: SDPBackend | None, q: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor
) -> Tensor:
    """Torch's attention over the listed slots of pages: q [1, N, H, D], pages [P, 64, H, D], slots [S] -> q's shape.

    The copy of keys and values is part of the work.
    """
    k, v = (pages.flatten(0, 1).index_select(0, slots)[None].transpose(1, 2) for pages in (k_pages, v_pages))
    return attention(backend, q.transpose(1, 2), k, v)


def library_attention(library: str, q: Tensor, k: Tensor, v: Tensor) -> Callable[[], Tensor]:
    """Prepare a call of one of `LIBRARIES` on q [1, N, H, D], k and v [S, H, D] -> [1, N, H, D].

    Raises whatever importing the library raises.
    """
    module, function = LIBRARIES[library]
    call = getattr(importlib.import_module(module), function)
    arguments = (q[0], k, v) if library == "FlashInfer" else (q, k[None], v[None])
    return partial(_as_one_batch, call, *arguments)


def _as_one_batch(call: Callable[..., Tensor | tuple[Tensor, ...]], *arguments: Tensor) -> Tensor:
    result = call(*arguments)
    out = result[0] if isinstance(result, tuple) else result
    return out if out.dim() == 4 else out[None]


def kv_write(*arguments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Norm, rotation and write into pages, without complex numbers, which torch.compile does not fuse.

    Arguments and result as in `ops.kv_write`: q, k, v [1, N, H, D], angles [N, D / 2], pages [P, 64, H, D], ids [1, M];
    returns the queries [1, N, H, D] and both pools.
    """
    q, k, v, q_weight, k_weight, cos, sin, k_pages, v_pages, ids = arguments
    full, rest = divmod(q.shape[1], PAGE_SLOTS)
    pages = ids[0].long()
    for tokens, pool in ((_rotated_norm(k, k_weight, cos, sin), k_pages), (v, v_pages)):
        if full:
            pool[pages[:full]] = tokens[0, : full * PAGE_SLOTS].unflatten(0, (full, PAGE_SLOTS))
        if rest:
            pool[pages[full], :rest] = tokens[0, full * PAGE_SLOTS :]
    return _rotated_norm(q, q_weight, cos, sin), k_pages, v_pages


def _rotated_norm(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [1, N, H, D], weight [D], cos and sin [N, D / 2]."""
    y = F.rms_norm(x.float(), weight.shape, weight.float(), EPS)
    even, odd, cos, sin = y[..., 0::2], y[..., 1::2], cos[:, None], sin[:, None]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).to(x.dtype)


def gate_residual_norm(x: Tensor, y: Tensor, gate: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Residual and norm of x and y [1, N, d] in float32 inside, as the op; torch.compile makes one kernel of it."""
    residual = x.float() + gate.float() * y.float()
    normed = F.rms_norm(residual, x.shape[-1:], None, EPS) * (1 + scale.float()) + shift.float()
    return residual.to(x.dtype), normed.to(x.dtype)


def channel_concat(
    noised: Tensor, recycled: Tensor, control: Tensor | None, weight: Tensor, bias: Tensor, patch: int
) -> Tensor:
    """Patch embedding of frames [1, C, h, w] as most models write it: concatenate, then a strided convolution."""
    sources = [noised, recycled] + ([control] if control is not None else [])
    kernel = weight.view(len(weight), -1, patch, patch)
    return F.conv2d(torch.cat(sources, 1), kernel, bias, stride=patch).flatten(2).transpose(1, 2).contiguous()


def clean_frame(tokens: Tensor, noised: Tensor, t: Tensor, patch: int) -> Tensor:
    """Clean frames [1, C, 1, h, w] from velocity tokens [1, N, C p^2]; torch.compile makes one kernel of it."""
    height, width = noised.shape[-2:]
    patches = tokens.view(len(noised), height // patch, width // patch, -1).permute(0, 3, 1, 2)
    velocity = F.pixel_shuffle(patches, patch).float()[:, :, None]
    return noised - t.view(-1, 1, 1, 1, 1) * velocity


def joined_convolution(
    past: Tensor, frames: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, mode: str, out_channels: int
) -> Tensor:
    """Convolution of one step of a decoder as most write it: put the past before the frames, then convolve.

    past [1, kt - 1, H, W, C], frames [1, T, H, W, C], weight [O, C, kt, kh, kw], bias [O]; residual and result
    [1, T', H', W', O'], as in `ops.ring_conv3d`.
    """
    return convolution(torch.cat([past, frames], 1), weight, bias, residual, mode, out_channels)


def convolution(frames: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, mode: str, out_channels: int) -> Tensor:
    """`joined_convolution` of frames [1, kt - 1 + T, H, W, C] that are one tensor already: torch.channels_last_3d."""
    video = frames.permute(0, 4, 1, 2, 3)
    if mode == "upsample":
        video = F.interpolate(video, scale_factor=(1.0, 2.0, 2.0), mode="nearest")
    padding = (0, weight.shape[3] // 2, weight.shape[4] // 2)
    columns = F.conv3d(video, weight, bias, padding=padding).permute(0, 2, 3, 4, 1)
    return spread_columns(columns, out_channels, 2 if mode == "shuffle" else 1) + residual


def colours(x: Tensor) -> Tensor:
    """Frames [..., 3] in -1..1 -> colours in uint8 [..., 3]."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def norm_silu(x: Tensor, gamma: Tensor, beta: Tensor | None, groups: int, eps: float) -> Tensor:
    """Norm and SiLU of frames [1, T, H, W, C], in float32 inside, as the op; torch.compile makes few kernels of it."""
    wide = x.float()
    if groups == 0:
        y = F.normalize(wide, dim=-1, eps=eps) * (x.shape[-1] ** 0.5 * gamma.float())
    else:
        y = F.group_norm(wide.flatten(0, 1).permute(0, 3, 1, 2), groups, gamma.float(), None, eps)
        y = y.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])
        y = y if beta is None else y + beta.float()
    return F.silu(y).to(x.dtype)
