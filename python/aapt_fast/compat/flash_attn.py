# SPDX-License-Identifier: Apache-2.0
"""The functions of FlashAttention 2 (package `flash_attn`) without it, on any device.

    from aapt_fast.compat.flash_attn import flash_attn_func

Signatures and results are those of that package. What is done is attention without a mask: of plain tensors, of packed
sequences, of caches with and without a block table; the rest of the arguments must have their defaults, or
NotImplementedError names the one that has not. float32 and float64 are taken as well, and pages of any size. Where
each call runs: `aapt_fast.ops.dense_attention`.
"""

from __future__ import annotations

from torch import Tensor

from aapt_fast.compat._arguments import (
    Packed,
    Supported,
    attend_cache,
    attend_dense,
    attend_packed,
    attend_packed_to_table,
    require_tensors,
)
from aapt_fast.errors import require

__all__ = ["flash_attn_func", "flash_attn_varlen_func", "flash_attn_with_kvcache"]

__version__ = "2.8.3"
"""Of the package whose signatures these are."""


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
    """q [B, Nq, H, D], k and v [B, L, Hkv, D] -> [B, Nq, H, D].

    With `return_attn_probs` also the log-sum-exp float32 [B, H, Nq] (natural logarithm) and, as in that package
    without dropout, None for the probabilities.
    """
    require_tensors(q=q, k=k, v=v)
    supported = Supported("flash_attn_func")
    _check(supported, dropout_p, causal, window_size, softcap, alibi_slopes)
    supported.repeatable(deterministic, q, k, v)
    out, lse = attend_dense(q, k, v, softmax_scale, return_attn_probs)
    return (out, lse, None) if return_attn_probs else out


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
    """q [Tq, H, D], k and v [Tk, Hkv, D] (with a block table [P, S, Hkv, D]) -> [Tq, H, D].

    Sequence b of q lies at cu_seqlens_q[b] .. cu_seqlens_q[b + 1]; every token belongs to one. With
    `return_attn_probs` also the log-sum-exp float32 [H, Tq] and None.
    """
    require_tensors(q=q, k=k, v=v, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k)
    supported = Supported("flash_attn_varlen_func")
    _check(supported, dropout_p, causal, window_size, softcap, alibi_slopes)
    supported.repeatable(deterministic, q, k, v)
    queries = Packed("q", q.shape[0], cu_seqlens_q, max_seqlen_q)
    if block_table is None:
        keys = Packed("k", k.shape[0], cu_seqlens_k, max_seqlen_k)
        out, lse = attend_packed(q, k, v, queries, keys, softmax_scale, return_attn_probs)
    else:
        lengths = cu_seqlens_k.diff()
        if lengths.is_cpu and len(lengths):
            longest = int(lengths.max())
            require(max_seqlen_k >= longest, "max_seqlen_k", f"at least {longest}", max_seqlen_k)
        rest = (block_table, softmax_scale, return_attn_probs)
        out, lse = attend_packed_to_table(q, k, v, queries, lengths, *rest)
    return (out, lse, None) if return_attn_probs else out


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
    """q [B, Nq, H, D] over caches [rows, S, Hkv, D] (with a block table [P, S, Hkv, D]) -> [B, Nq, H, D].

    New k and v [B, n, Hkv, D] are written into the caches at `cache_seqlens` first, in place. With
    `return_softmax_lse` also the log-sum-exp float32 [B, H, Nq].
    """
    require_tensors(q=q, k_cache=k_cache, v_cache=v_cache)
    supported = Supported("flash_attn_with_kvcache")
    supported.full_attention(causal, window_size, softcap)
    for name, value in (
        ("rotary_cos", rotary_cos),
        ("rotary_sin", rotary_sin),
        ("cache_leftpad", cache_leftpad),
        ("alibi_slopes", alibi_slopes),
    ):
        supported.only(name, value, None)
    supported.only("rotary_interleaved", rotary_interleaved, True)
    supported.only("num_splits", num_splits, 0, 1)
    require((k is None) == (v is None), "v", "k and v together", "one of them")
    if k is not None:
        require_tensors(k=k, v=v)
    out, lse = attend_cache(
        q,
        k_cache,
        v_cache,
        None if k is None or v is None else (k, v),
        cache_seqlens,
        cache_batch_idx,
        ("block_table", block_table),
        softmax_scale,
        return_softmax_lse,
    )
    return (out, lse) if return_softmax_lse else out


def _check(
    supported: Supported,
    dropout_p: float,
    causal: bool,
    window_size: tuple[int, int],
    softcap: float,
    alibi_slopes: Tensor | None,
) -> None:
    supported.only("dropout_p", dropout_p, 0)
    supported.full_attention(causal, window_size, softcap)
    supported.only("alibi_slopes", alibi_slopes, None)
