# SPDX-License-Identifier: Apache-2.0
"""The functions of FlashAttention 2 (package `flash_attn`) without it, on any device.

    from aapt_fast.compat.flash_attn import flash_attn_func

Signatures and results are those of that package. Supported is attention without a mask: of plain tensors, of packed
sequences, and over caches with and without a block table. Any other argument must have its default;
NotImplementedError names the one that has not. Unlike the package, these functions also take float32, float64 and
pages of any size. `aapt_fast.ops.dense_attention` says which implementation runs.
"""

from __future__ import annotations

from torch import Tensor

from aapt_fast.compat._arguments import require_supported
from aapt_fast.compat._sequences import Packed, attend_cache, attend_packed, require_longest
from aapt_fast.ops.dense_attention import dense_attention, table_attention

__all__ = ["flash_attn_func", "flash_attn_varlen_func", "flash_attn_with_kvcache"]

__version__ = "2.8.3"
"""Version of the package with these signatures."""


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Tensor | tuple[Tensor, Tensor, None]:
    """Attend without a mask: q [B, Nq, H, D], k and v [B, L, Hkv, D] -> [B, Nq, H, D].

    With `return_attn_probs` also the log-sum-exp float32 [B, H, Nq] (natural logarithm) and, as in that package
    without dropout, None for the probabilities.
    """
    require_supported("flash_attn_func", locals())
    out, lse = dense_attention(q, k, v, softmax_scale, with_lse=return_attn_probs)
    return out if lse is None else (out, lse, None)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor, None]:
    """Attend within sequences: q [Tq, H, D], k and v [Tk, Hkv, D] (block table: [P, S, Hkv, D]) -> [Tq, H, D].

    Sequence b of q lies at cu_seqlens_q[b] .. cu_seqlens_q[b + 1]; every token belongs to one. With
    `return_attn_probs` also the log-sum-exp float32 [H, Tq] and None.
    """
    require_supported("flash_attn_varlen_func", locals(), ("q", "k", "v", "cu_seqlens_q", "cu_seqlens_k"))
    queries = Packed("q", q.shape[0], cu_seqlens_q, max_seqlen_q)
    if block_table is None:
        keys = Packed("k", k.shape[0], cu_seqlens_k, max_seqlen_k)
        out, lse = attend_packed(q, k, v, queries, keys, softmax_scale, return_attn_probs)
    else:
        lengths, rows = cu_seqlens_k.diff(), queries.rows_of(q)
        require_longest("k", max_seqlen_k, lengths)
        attended = table_attention(rows, k, v, block_table, lengths, softmax_scale, return_attn_probs)
        out, lse = queries.joined(attended)
    return out if lse is None else (out, lse, None)


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attend to caches: q [B, Nq, H, D], caches [rows, S, Hkv, D] (block table: [P, S, Hkv, D]) -> [B, Nq, H, D].

    New k and v [B, n, Hkv, D] are written into the caches at `cache_seqlens` first, in place. With
    `return_softmax_lse` also the log-sum-exp float32 [B, H, Nq].
    """
    require_supported("flash_attn_with_kvcache", locals(), ("q", "k_cache", "v_cache"))
    where = (cache_seqlens, cache_batch_idx, block_table, "block_table")
    out, lse = attend_cache(q, (k_cache, v_cache), (k, v), *where, softmax_scale, return_softmax_lse)
    return out if lse is None else (out, lse)
