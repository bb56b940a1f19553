# SPDX-License-Identifier: Apache-2.0
"""Softmax attention written out, in float64: the oracle of dense attention."""

from __future__ import annotations

import torch
from torch import Tensor


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """One sequence: q [Nq, H, D], k [L, Hkv, D], v [L, Hkv, Dv] -> out [Nq, H, Dv], lse [H, Nq] (natural)."""
    group = q.shape[1] // k.shape[1]
    keys, values = (x.double().repeat_interleave(group, 1) for x in (k, v))
    scores = torch.einsum("nhd,lhd->hnl", q.double(), keys) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return torch.einsum("hnl,lhd->nhd", scores.softmax(-1), values), scores.logsumexp(-1)


def rows_of_attention(
    q: Tensor, k: Tensor, v: Tensor, lengths: list[int] | None = None, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Rows q [B, Nq, H, D], k and v [B, L, Hkv, D], of which `lengths` count -> out [B, Nq, H, D], lse [B, H, Nq]."""
    lengths = [k.shape[1]] * len(k) if lengths is None else lengths
    rows = [softmax_attention(q[row], k[row, :length], v[row, :length], scale) for row, length in enumerate(lengths)]
    return torch.stack([out for out, _ in rows]), torch.stack([lse for _, lse in rows])


def random_qkv(
    batch: int, queries: int, keys: int, heads: int = 4, kv_heads: int = 4, width: int = 16, **options
) -> tuple[Tensor, Tensor, Tensor]:
    """q [B, Nq, H, D], k and v [B, L, Hkv, D] with normal entries."""
    return (
        torch.randn(batch, queries, heads, width, **options),
        torch.randn(batch, keys, kv_heads, width, **options),
        torch.randn(batch, keys, kv_heads, width, **options),
    )
