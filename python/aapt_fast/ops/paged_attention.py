# SPDX-License-Identifier: Apache-2.0
"""Attention of the tokens of one step over keys and values that lie in pages.

For row b let the key set be the first `page_valid[b, m]` slots of page `page_ids[b, m]`, for all entries m. Then

    s[n, j] = scale * q[b, n, h] . k[j, h * Hkv // H] + page_bias[b, m(j)]
    lse[b, h, n] = ln sum_j exp(s[n, j])
    out[b, n, h] = sum_j exp(s[n, j] - lse[b, h, n]) v[j, h * Hkv // H]

where the query heads share Hkv key heads in equal groups and m(j) is the entry that lists slot j. There is no mask, and
the order of the entries has no meaning: keys carry their position (RoPE) already. Pages and slots that are not listed
may hold anything, NaN included. The log-sum-exp lets partial results be merged.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from aapt_fast.errors import require, require_shape
from aapt_fast.ops import fused_attention
from aapt_fast.ops._checks import PAGE_SLOTS, check_inference, check_page_id, check_pages, check_queries, check_tensor
from aapt_fast.ops.fused_attention import PackedRows
from aapt_fast.ops.kernels import Kernel, running_kernel
from aapt_fast.ops.registry import FUSED, register
from aapt_fast.ops.split_schedule import Schedule, slots_of, split_schedule


def paged_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_ids: Tensor,
    page_valid: Tensor,
    scale: float | None = None,
    page_bias: Tensor | None = None,
    packed: PackedRows | None = None,
) -> tuple[Tensor, Tensor]:
    """Attend to the valid slots of the listed pages. Inference only.

    Args:
        q: [B, Nq, H, D], float32, bfloat16 or float16, normalised and rotated.
        k_pages: [P, 64, Hkv, D], same dtype; H is a multiple of Hkv.
        v_pages: [P, 64, Hkv, D], same dtype.
        page_ids: int32 [B, M], pages of each row in any order.
        page_valid: int32 [B, M], valid slots (0..64) of each listed page; 0 means the entry is unused and its page id
            is not read.
        scale: factor on the scores; None means D ** -0.5.
        page_bias: float32 [B, M], added to the scores of each listed page (natural units), or None.
        packed: of this table, from `packed_rows`, for calls without a bias; None computes it where it is needed.

    Returns:
        out: [B, Nq, H, D] in q.dtype, contiguous.
        lse: float32 [B, H, Nq], natural logarithm. A row without any valid slot has out 0 and lse -inf.

    A page id outside the pool or a valid count outside 0..64 is an error on the CPU. On a GPU, where looking at the
    values would mean waiting for them, nothing outside the pool is read and the row's results are NaN.

    Raises:
        ValueError: wrong shape, dtype or device of an argument; on the CPU also wrong values in the page table.
        RuntimeError: an input requires a gradient while gradients are recorded.
    """
    check_pages(k_pages, v_pages)
    check_queries(q, k_pages)
    require_shape("page_ids", page_ids, q.shape[0], "M")
    check_tensor("page_ids", page_ids, page_ids.shape, torch.int32, q.device)
    check_tensor("page_valid", page_valid, page_ids.shape, torch.int32, q.device)
    if page_bias is not None:
        check_tensor("page_bias", page_bias, page_ids.shape, torch.float32, q.device)
        require(packed is None, "packed", "None with a page_bias", "packed rows")
    check_inference("paged_attention", q, k_pages, v_pages, page_bias)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return _call(q, k_pages, v_pages, page_ids, page_valid, scale, page_bias, None if packed is None else list(packed))


def packed_rows(page_ids: Tensor, page_valid: Tensor, pages: int) -> PackedRows | None:
    """Places of the valid slots, for calls of `paged_attention` with one page table, as in all layers of a step.

    page_ids and page_valid int32 [B, M], for a pool of `pages` pages. None where the calls read the table itself: on
    the CPU, and where a kernel of this package is on.
    """
    if page_ids.is_cpu or running_kernel("paged_attention", page_ids.device) is not None:
        return None
    return fused_attention.pack(page_ids, page_valid, pages)


def _allocate(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    batch, tokens, heads, _ = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    return out, q.new_empty((batch, heads, tokens), dtype=torch.float32)


def _bind(kernel: Kernel, *arguments: Any) -> tuple[tuple[Tensor, Tensor], tuple[Any, ...]]:
    q, k_pages, v_pages, page_ids, page_valid, scale, page_bias, _ = arguments
    if q.is_cpu:
        _rows_by_layout(page_ids, page_valid, k_pages.shape[0])  # for its checks
    out, lse = _allocate(q)
    parts: tuple[Any, ...] = ()
    if kernel.variant == "sm90_split":
        schedule = _schedule(q, page_ids.shape[1])
        rows = ((q.shape[0] * q.shape[2] - schedule.whole) * len(schedule.shares), q.shape[1])
        part_out = q.new_empty((*rows, 1, q.shape[3]))
        parts = (part_out, q.new_empty(rows, dtype=torch.float32), *schedule)
    return (out, lse), (q, k_pages, v_pages, page_ids, page_valid, page_bias, out, lse, scale, *parts)


def _schedule(q: Tensor, entries: int) -> Schedule:
    """The split of the keys of q [B, Nq, H, D] for sm90_split, which works with pairs of blocks of 128 queries."""
    batch, tokens, heads, _ = q.shape
    return split_schedule(-(-tokens // 256), batch * heads, entries, slots_of(q.device, cluster=2))


def _cpu(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Gather the valid slots of the listed pages, then torch's flash attention for the CPU."""
    q, k_pages, v_pages, page_ids, page_valid, scale, page_bias, _ = arguments
    layouts = _rows_by_layout(page_ids, page_valid, k_pages.shape[0])
    batch, tokens, heads, _ = q.shape
    out = torch.zeros(q.shape, dtype=q.dtype)
    lse = torch.full((batch, heads, tokens), -torch.inf, dtype=torch.float32)
    for counts, rows in layouts.items():
        if not counts or tokens == 0:
            continue
        index = torch.tensor([row for row, _, _ in rows])
        pages = torch.tensor([row_pages for _, row_pages, _ in rows])  # [rows, entries]
        bias = None
        if page_bias is not None:
            entries = torch.tensor([row_entries for _, _, row_entries in rows])
            bias = page_bias[index].gather(1, entries).repeat_interleave(torch.tensor(counts), 1)[:, None, None]
        keys, values = _gather(k_pages, pages, counts), _gather(v_pages, pages, counts)
        attended, attended_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(
            q.index_select(0, index).transpose(1, 2),
            keys.transpose(1, 2),
            values.transpose(1, 2),
            attn_mask=bias,
            scale=scale,
        )
        out[index], lse[index] = attended.transpose(1, 2), attended_lse
    return out, lse


def _rows_by_layout(
    page_ids: Tensor, page_valid: Tensor, pages: int
) -> dict[tuple[int, ...], list[tuple[int, list[int], list[int]]]]:
    """Rows that can share one gather: {sorted valid counts: [(row, page ids, entries, in the order of the counts)]}.

    The order within a count is that of the table, so that the result does not depend on where pages lie in the pool.
    """
    layouts: dict[tuple[int, ...], list[tuple[int, list[int], list[int]]]] = {}
    for row, (ids, counts) in enumerate(zip(page_ids.tolist(), page_valid.tolist(), strict=True)):
        used = sorted((count, entry, ids[entry]) for entry, count in enumerate(counts) if count)
        for count, _, page in used:
            if not 0 < count <= PAGE_SLOTS:
                raise ValueError(f"page_valid: expected counts in 0..{PAGE_SLOTS}, got {count} in row {row}")
            check_page_id(page, pages, row)
        key = tuple(count for count, _, _ in used)
        layouts.setdefault(key, []).append((row, [page for _, _, page in used], [entry for _, entry, _ in used]))
    return layouts


def _gather(pages: Tensor, ids: Tensor, counts: tuple[int, ...]) -> Tensor:
    """The first counts[m] slots of page ids[r, m], for all m one after the other: [rows, sum(counts), Hkv, D]."""
    parts, start = [], 0
    for count, run in groupby(counts):
        stop = start + len(list(run))
        part = pages[:, :count].index_select(0, ids[:, start:stop].flatten())
        parts.append(part.view(len(ids), -1, *pages.shape[2:]))
        start = stop
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


_call = register(
    "paged_attention(Tensor q, Tensor k_pages, Tensor v_pages, Tensor page_ids, Tensor page_valid, float scale,"
    " Tensor? page_bias, Tensor[]? packed) -> (Tensor, Tensor)",
    _cpu,
    cuda=(fused_attention.paged_attention, FUSED),
    allocate=_allocate,
    bind=_bind,
)
