# SPDX-License-Identifier: Apache-2.0
"""Softmax attention written out: the oracle of dense attention, and a stand-in for torch's kernels on GPUs."""

from __future__ import annotations

from itertools import pairwise

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


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, q_starts: Tensor, k_starts: Tensor, most_queries: int, most_keys: int, scale: float
) -> tuple[Tensor, Tensor]:
    """`ops.fused_attention.Attend` on the CPU: q [B * n, H, D], k and v [T, H, D] -> out like q, lse [B, H, n].

    Computed in float32. Rows without keys hold NaN, as theirs are undefined. Raises AssertionError for more queries or
    keys in a row than announced, and for heads that a kernel of torch does not take.
    """
    assert q.shape[-1] == k.shape[-1] == v.shape[-1] and q.shape[-1] % 8 == 0
    assert q.is_contiguous() and k.is_contiguous() and v.is_contiguous()
    assert q_starts.dtype == k_starts.dtype == torch.int32
    out = torch.full_like(q, torch.nan)
    lse = torch.full((len(q_starts) - 1, q.shape[1], most_queries), torch.nan)
    starts = zip(q_starts.tolist(), k_starts.tolist(), strict=True)
    for row, ((q_start, k_start), (q_end, k_end)) in enumerate(pairwise(starts)):
        assert q_end - q_start == most_queries and k_end - k_start <= most_keys
        if k_end > k_start:
            keys = slice(k_start, k_end)
            scores = torch.einsum("nhd,lhd->hnl", q[q_start:q_end].float(), k[keys].float()) * scale
            attended = torch.einsum("hnl,lhd->nhd", scores.softmax(-1), v[keys].float())
            out[q_start:q_end], lse[row] = attended, scores.logsumexp(-1)
    return out, lse
