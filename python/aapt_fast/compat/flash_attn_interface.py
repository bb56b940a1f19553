# SPDX-License-Identifier: Apache-2.0
"""The functions of FlashAttention 3 (module `flash_attn_interface`) without it, on any device.

    from aapt_fast.compat.flash_attn_interface import flash_attn_func

As `compat.flash_attn`, with the arguments of version 3: no dropout, a `page_table`, `seqused_q` and `seqused_k`. As in
that module, a function returns a bare tensor unless `return_attn_probs` or `return_softmax_lse` is set. The original
Wan code takes the first element of what version 3 returns, which fails with today's version 3 as it does with this
module: give it `compat.flash_attn` as `flash_attn`, or use `compat.wan.replaced_in`.
"""

from __future__ import annotations

from torch import Tensor

from aapt_fast.compat._arguments import SUPPORTED, require_supported
from aapt_fast.compat._sequences import Packed, attend_cache, attend_packed
from aapt_fast.ops.dense_attention import dense_attention

__all__ = ["flash_attn_func", "flash_attn_varlen_func", "flash_attn_with_kvcache"]


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attend without a mask: q [B, Nq, H, D], k [B, L, Hkv, D], v [B, L, Hkv, Dv] -> [B, Nq, H, Dv].

    With `return_attn_probs` also the log-sum-exp float32 [B, H, Nq] (natural logarithm; then Dv = D).
    """
    require_supported("flash_attn_func", locals())
    out, lse = dense_attention(q, k, v, softmax_scale, with_lse=return_attn_probs)
    return out if lse is None else (out, lse)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attend within sequences: q [Tq, H, D], k [Tk, Hkv, D], v [Tk, Hkv, Dv] -> [Tq, H, Dv].

    The result is 0 behind `seqused_q` [B] tokens of a sequence; keys behind `seqused_k` [B] do not count. With
    `return_attn_probs` also the log-sum-exp float32 [H, Tq].
    """
    require_supported("flash_attn_varlen_func", locals(), ("q", "k", "v", "cu_seqlens_q", "cu_seqlens_k"))
    queries = Packed("q", q.shape[0], cu_seqlens_q, max_seqlen_q, seqused_q)
    keys = Packed("k", k.shape[0], cu_seqlens_k, max_seqlen_k, seqused_k)
    out, lse = attend_packed(q, k, v, queries, keys, softmax_scale, return_attn_probs)
    return out if lse is None else (out, lse)


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    qv: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    page_table: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k_new: Tensor | None = None,
    max_seqlen_q: int | None = None,
    rotary_seqlens: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    scheduler_metadata: Tensor | None = None,
    num_splits: int = 0,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
    return_softmax_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attend to caches: q [B, Nq, H, D], caches [rows, S, Hkv, D] (page table: [P, S, Hkv, D]) -> [B, Nq, H, D].

    New k and v [B, n, Hkv, D] are written into the caches at `cache_seqlens` first, in place. With
    `return_softmax_lse` also the log-sum-exp float32 [B, H, Nq].
    """
    supported = {**SUPPORTED, "cu_seqlens_q": (None,), "max_seqlen_q": (None,)}
    require_supported("flash_attn_with_kvcache", locals(), ("q", "k_cache", "v_cache"), supported)
    where = (cache_seqlens, cache_batch_idx, page_table, "page_table")
    out, lse = attend_cache(q, (k_cache, v_cache), (k, v), *where, softmax_scale, return_softmax_lse)
    return out if lse is None else (out, lse)
