# SPDX-License-Identifier: Apache-2.0
"""When attention in somebody's model goes through our kernels, and attention of a whole call through fresh pages."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aapt_fast.ops import KERNELS, kv_write, paged_attention
from aapt_fast.ops.dense_attention import valid_counts
from aapt_fast.ops.kernels import running_kernel
from aapt_fast.ops.paged_attention import PAGE_SLOTS

PART = "attention"


def attention_obstacle(device: torch.device, dtype: torch.dtype, head_width: int) -> str | None:
    """The reason why attention on this device is left to torch, or None."""
    kernel = running_kernel("paged_attention", device)
    if kernel is not None:
        return KERNELS[kernel].refusal(dtype, head_width)
    if device.type == "cpu":
        return "on the CPU nothing here is faster than torch's attention"
    return "no attention kernel of this build is verified for this GPU (`aapt-fast doctor` says why)"


def obstacle_for(module: nn.Module, head_width: int) -> str | None:
    """`attention_obstacle` where the parameters of `module` are."""
    parameter = next(module.parameters())
    return attention_obstacle(parameter.device, parameter.dtype, head_width)


def plain_rms_norm(norm: nn.Module) -> bool:
    """Whether `norm` is torch's RMSNorm with a weight and nothing added, so that an op may do it instead."""
    hooks = norm._forward_hooks or norm._forward_pre_hooks or "forward" in vars(norm)
    return type(norm) is nn.RMSNorm and norm.weight is not None and not hooks


def attend_to_own_tokens(
    q: Tensor, k: Tensor, v: Tensor, weights: tuple[Tensor, Tensor], tables: tuple[Tensor, Tensor] | None, eps: float
) -> Tensor:
    """Norm, rotation and attention of q, k, v [B, N, H, D] to each other -> [B, N, H, D].

    weights: of the RMSNorms of q and k, [H * D] (across heads); tables: cos and sin, float32 [N, D / 2], or None.
    """
    batch, tokens, heads, width = q.shape
    pages = -(-tokens // PAGE_SLOTS)
    k_pages = k.new_empty(batch * pages, PAGE_SLOTS, heads, width)
    v_pages = torch.empty_like(k_pages)
    ids = torch.arange(batch * pages, dtype=torch.int32, device=q.device).view(batch, pages)
    cos, sin = (None, None) if tables is None else tables
    q = kv_write(q, k, v, *weights, cos, sin, k_pages, v_pages, ids, eps)
    lengths = torch.full((batch,), tokens, device=q.device)
    out, _ = paged_attention(q, k_pages, v_pages, ids, valid_counts(lengths, pages))
    return out
