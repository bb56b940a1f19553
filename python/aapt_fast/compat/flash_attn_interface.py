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

from aapt_fast.compat._arguments import Packed, Supported, attend_cache, attend_dense, attend_packed, require_tensors
from aapt_fast.errors import require

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
    """q [B, Nq, H, D], k [B, L, Hkv, D], v [B, L, Hkv, Dv] -> [B, Nq, H, Dv].

    With `return_attn_probs` also the log-sum-exp float32 [B, H, Nq] (natural logarithm; then Dv = D).
    """
    require_tensors(q=q, k=k, v=v)
    supported = Supported("flash_attn_func")
    supported.full_attention(causal, window_size, softcap)
    _check(supported, qv, (q_descale, k_descale, v_descale), attention_chunk, num_splits, pack_gqa, sm_margin)
    supported.repeatable(deterministic, q, k, v)
    out, lse = attend_dense(q, k, v, softmax_scale, return_attn_probs)
    return (out, lse) if return_attn_probs else out


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
    """q [Tq, H, D], k [Tk, Hkv, D], v [Tk, Hkv, Dv] -> [Tq, H, Dv], zero behind `seqused_q` [B] tokens of a sequence.

    With `return_attn_probs` also the log-sum-exp float32 [H, Tq].
    """
    require_tensors(q=q, k=k, v=v, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k)
    supported = Supported("flash_attn_varlen_func")
    supported.full_attention(causal, window_size, softcap)
    _check(supported, qv, (q_descale, k_descale, v_descale), attention_chunk, num_splits, pack_gqa, sm_margin)
    supported.repeatable(deterministic, q, k, v)
    queries = Packed("q", q.shape[0], cu_seqlens_q, max_seqlen_q, seqused_q)
    keys = Packed("k", k.shape[0], cu_seqlens_k, max_seqlen_k, seqused_k)
    out, lse = attend_packed(q, k, v, queries, keys, softmax_scale, return_attn_probs)
    return (out, lse) if return_attn_probs else out


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
    """q [B, Nq, H, D] over caches [rows, S, Hkv, D] (with a page table [P, S, Hkv, D]) -> [B, Nq, H, D].

    New k and v [B, n, Hkv, D] are written into the caches at `cache_seqlens` first, in place. With
    `return_softmax_lse` also the log-sum-exp float32 [B, H, Nq].
    """
    require_tensors(q=q, k_cache=k_cache, v_cache=v_cache)
    supported = Supported("flash_attn_with_kvcache")
    supported.full_attention(causal, window_size, softcap)
    _check(supported, qv, (q_descale, k_descale, v_descale), attention_chunk, num_splits, pack_gqa, sm_margin)
    for name, value in (
        ("rotary_cos", rotary_cos),
        ("rotary_sin", rotary_sin),
        ("rotary_seqlens", rotary_seqlens),
        ("cache_leftpad", cache_leftpad),
        ("cu_seqlens_q", cu_seqlens_q),
        ("cu_seqlens_k_new", cu_seqlens_k_new),
        ("max_seqlen_q", max_seqlen_q),
        ("scheduler_metadata", scheduler_metadata),
    ):
        supported.only(name, value, None)
    supported.only("rotary_interleaved", rotary_interleaved, True)
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
        ("page_table", page_table),
        softmax_scale,
        return_softmax_lse,
    )
    return (out, lse) if return_softmax_lse else out


def _check(
    supported: Supported,
    qv: Tensor | None,
    descales: tuple[Tensor | None, ...],
    attention_chunk: int,
    num_splits: int,
    pack_gqa: bool | None,
    sm_margin: int,
) -> None:
    supported.only("qv", qv, None)
    for name, value in zip(("q_descale", "k_descale", "v_descale"), descales, strict=True):
        supported.only(name, value, None)
    supported.only("attention_chunk", attention_chunk, 0)
    supported.only("num_splits", num_splits, 0, 1)
    supported.only("pack_gqa", pack_gqa, None)
    supported.only("sm_margin", sm_margin, 0)
