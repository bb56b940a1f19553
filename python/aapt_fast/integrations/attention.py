# SPDX-License-Identifier: Apache-2.0
"""Conditions for our attention kernels in models of other packages, and attention of one call through fresh pages."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aapt_fast.ops import kv_write, paged_attention
from aapt_fast.ops.dense_attention import as_pages, full_counts
from aapt_fast.ops.kernels import kernels_on
from aapt_fast.ops.paged_attention import PAGE_SLOTS

PART = "attention"


def attention_obstacle(device: torch.device, dtype: torch.dtype, head_width: int) -> str | None:
    """The reason why attention on this device is left to torch, or None."""
    kernels = kernels_on("paged_attention", device)
    if kernels:
        refusals = [kernel.refusal(dtype, head_width) for kernel in kernels]
        return None if None in refusals else refusals[0]
    if device.type == "cpu":
        return "on the CPU nothing here is faster than torch's attention"
    return "no attention kernel of this build is verified for this GPU: `aapt-fast verify` tries them"


# torch.compile takes the answer as a constant; torch.compiler.assume_constant_result would import the whole compiler.
attention_obstacle._dynamo_marked_constant = True  # type: ignore[attr-defined]


def obstacle_for(module: nn.Module, head_width: int) -> str | None:
    """`attention_obstacle` for the device and dtype of the parameters of `module`."""
    parameter = next(module.parameters())
    return attention_obstacle(parameter.device, parameter.dtype, head_width)


def plain_rms_norm(norm: nn.Module) -> bool:
    """Tell if `norm` is torch's RMSNorm with a weight and without hooks, so that an op may replace it."""
    hooks = norm._forward_hooks or norm._forward_pre_hooks or "forward" in vars(norm)
    return type(norm) is nn.RMSNorm and norm.weight is not None and not hooks


def records_gradients(module: nn.Module, *inputs: Tensor | None) -> bool:
    """Tell if a call of `module` with these tensors [...] records gradients."""
    if not torch.is_grad_enabled():
        return False
    tensors = (*(x for x in inputs if x is not None), *module.parameters())
    return any(tensor.requires_grad for tensor in tensors)


def attend_to_own_tokens(
    q: Tensor, k: Tensor, v: Tensor, weights: tuple[Tensor, Tensor], tables: tuple[Tensor, Tensor] | None, eps: float
) -> Tensor:
    """Normalise, rotate and attend q, k, v [B, N, H, D] to each other -> [B, N, H, D].

    Args:
        weights: weights [H * D] of the RMSNorms of q and k, across heads.
        tables: cos and sin, float32 [N, D / 2], or None.
        eps: of the norms.
    """
    batch, tokens, heads, width = q.shape
    pages = -(-tokens // PAGE_SLOTS)
    k_pages = k.new_empty(batch * pages, PAGE_SLOTS, heads, width)
    v_pages = torch.empty_like(k_pages)
    ids = torch.arange(batch * pages, dtype=torch.int32, device=q.device).view(batch, pages)
    cos, sin = (None, None) if tables is None else tables
    q = kv_write(q, k, v, *weights, cos, sin, k_pages, v_pages, ids, eps)
    out, _ = paged_attention(q, k_pages, v_pages, ids, full_counts(batch, tokens, q.device))
    return out


def attend_to_context(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend q [B, N, H, D] to k and v [B, L, H, D] -> [B, N, H, D]."""
    out, _ = paged_attention(q, *as_pages(k, v))
    return out
