# SPDX-License-Identifier: Apache-2.0
"""Paged attention on GPUs by torch's fused kernels, for GPUs where no kernel of this package runs.

The valid slots of all rows are copied into one packed tensor, row after row; torch's attention for sequences of
different lengths takes it from there:

    page_ids, page_valid [B, M]  ->  slots [B * M * 64]       places in the pool, those of row 0 first
                                     starts [B + 1]           where each row's slots begin
    k_pages[slots], v_pages[slots]   [B * M * 64, Hkv, D]     keys and values; behind starts[B] they are never read
    flash attention                  float16 and bfloat16 on GPUs of capability 8.0 and newer, D up to 256
    memory-efficient attention       everything else

The places are the same for all calls with one page table: a step computes them once for all of its layers. Sizes depend
on shapes alone and the lengths stay on the device, so nothing waits for the GPU and a CUDA graph can record the call.
Query heads that share a key head become more queries of that head. A bias of a page becomes further elements of its
keys, which every query multiplies by one: no tensor of scores or of biases is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from aapt_fast.ops._checks import PAGE_SLOTS

Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, int, float], tuple[Tensor, Tensor]]
"""q [B * n, H, D], k and v [T, H, D], starts of the rows of q and of k, int32 [B + 1] each, most queries n and most
keys of a row, scale -> out [B * n, H, D], lse float32 [B, H, n]. Undefined for a row without keys."""

MOST_FLASH_WIDTH = 256
ALIGNMENT = 8
"""Elements of a head in a multiple of which both kernels take it."""


def paged_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_ids: Tensor,
    page_valid: Tensor,
    scale: float,
    page_bias: Tensor | None = None,
    packed: Sequence[Tensor] | None = None,
    attend: Attend | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the op `paged_attention` with `attend`; None chooses one of torch's kernels for the GPU of q.

    q [B, Nq, H, D], pages [P, 64, Hkv, D], page_ids and page_valid int32 [B, M], page_bias float32 [B, M]
    -> out [B, Nq, H, D], lse [B, H, Nq]. `packed`: tensors of the `PackedRows` of this table, if they are known. Pages
    whose slots do not lie evenly in memory are copied first.
    """
    batch, tokens, heads, width = q.shape
    pages, kv_heads, most_keys = k_pages.shape[0], k_pages.shape[2], page_ids.shape[1] * PAGE_SLOTS
    row = pack(page_ids, page_valid, pages, page_bias) if packed is None else PackedRows(*packed)
    if 0 in (q.numel(), pages, most_keys):
        out, lse = torch.zeros_like(q), q.new_zeros((batch, heads, tokens), dtype=torch.float32)
        return _fill_rows_without_keys(out, lse, row)
    group = heads // kv_heads
    queries = q.unflatten(2, (kv_heads, group)).transpose(2, 3).reshape(-1, kv_heads, width)
    keys, values = (x.flatten(0, 1).index_select(0, row.slots) for x in (k_pages, v_pages))
    if page_bias is not None:
        queries, keys, scale = _with_bias(queries, keys, scale, page_bias.flatten()[row.entries])
    queries, keys, values = _same_width(queries, keys, values)
    if attend is None:
        attend = torch_kernel(queries)
    most_queries = tokens * group
    starts = torch.arange(0, batch * most_queries + 1, most_queries, dtype=torch.int32, device=q.device)
    out, lse = attend(_aligned(queries), keys, values, starts, row.starts, most_queries, most_keys, scale)
    out = out[..., :width].view(batch, tokens, group, kv_heads, width).transpose(2, 3).flatten(2, 3)
    lse = lse.unflatten(2, (tokens, group)).transpose(2, 3).flatten(1, 2)
    return _fill_rows_without_keys(out, lse, row)


class PackedRows(NamedTuple):
    """Places of the valid slots of B rows, one row after the other."""

    slots: Tensor  # int64 [B * M * 64], in the pool; 0 behind those that count
    entries: Tensor  # int64 [B * M * 64], of the flattened page table
    starts: Tensor  # int32 [B + 1]
    empty: Tensor  # bool [B], rows without slots; those with a bad value in the page table are among them
    filler: Tensor  # float32 [B], what empty rows attend to: 0, NaN for a bad value


def pack(page_ids: Tensor, page_valid: Tensor, pages: int, page_bias: Tensor | None = None) -> PackedRows:
    """List the valid slots of a page table for a pool of `pages` pages.

    Args:
        page_ids: int32 [B, M].
        page_valid: int32 [B, M].
        pages: P.
        page_bias: float32 [B, M] or None; slots of pages with a bias of -inf do not count.
    """
    bad = (page_valid != page_valid.clamp(0, PAGE_SLOTS)) | (page_ids != page_ids.clamp(0, pages - 1))
    broken = (bad & (page_valid != 0)).any(1)
    left_out = broken[:, None] if page_bias is None else broken[:, None] | (page_bias == -torch.inf)
    counts = page_valid.masked_fill(left_out, 0)
    starts = F.pad(counts.sum(1).cumsum(0), (1, 0)).int()
    ends, first_slots = counts.flatten().cumsum(0), page_ids.long().flatten() * PAGE_SLOTS
    places = torch.arange(counts.numel() * PAGE_SLOTS, device=page_ids.device)
    entries = torch.searchsorted(ends, places, right=True).clamp_(max=counts.numel() - 1)
    slots = places + (first_slots - ends + counts.flatten())[entries]
    empty = starts[1:] == starts[:-1]
    filler = torch.zeros_like(empty, dtype=torch.float32).masked_fill_(broken, torch.nan)
    return PackedRows(slots.masked_fill_(places >= ends[-1:], 0), entries, starts, empty, filler)


def _with_bias(queries: Tensor, keys: Tensor, scale: float, bias: Tensor) -> tuple[Tensor, Tensor, float]:
    """Queries, keys and scale whose scores are those of q [n, H, D] and k [T, H, D] plus `bias`, float32 [T].

    The keys gain the elements of bias / scale: one in float32, in half precision three that add up to it. In float16
    a bias beyond 65504 times the scale counts as that.
    """
    if scale == 0:
        queries, scale = torch.zeros_like(queries), 1.0
    count, limit = 1 if keys.dtype == torch.float32 else 3, torch.finfo(keys.dtype).max
    added = count + -(keys.shape[-1] + count) % ALIGNMENT  # the last ones stay zero
    rest, elements = (bias / scale).clamp(-limit, limit), keys.new_zeros(len(keys), 1, added)
    for part in elements[:, 0, :count].unbind(-1):
        part.copy_(rest)
        rest = rest - part
    ones = queries.new_zeros(added)
    ones[:count] = 1
    queries = torch.cat((queries, ones.expand(*queries.shape[:2], -1)), -1)
    return queries, torch.cat((keys, elements.expand(-1, keys.shape[1], -1)), -1), scale


def _same_width(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors [.., D_i], their last dimensions filled up with zeros to one width that the kernels take."""
    width = -(-max(tensor.shape[-1] for tensor in tensors) // ALIGNMENT) * ALIGNMENT
    return tuple(x if x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1])) for x in tensors)


def _aligned(x: Tensor) -> Tensor:
    """`x` [...] contiguous, from an address that is a multiple of 16 bytes: the kernels load so much at a time."""
    if x.storage_offset() * x.itemsize % 16 == 0:
        return x.contiguous()
    return x.clone(memory_format=torch.contiguous_format)


def _fill_rows_without_keys(out: Tensor, lse: Tensor, row: PackedRows) -> tuple[Tensor, Tensor]:
    """out [B, Nq, H, D] and lse [B, H, Nq], with 0 and -inf in rows without slots, NaN where the table is bad."""
    empty, filler = row.empty.view(-1, 1, 1), row.filler.view(-1, 1, 1)
    out = torch.where(empty[..., None], filler[..., None].to(out.dtype), out).contiguous()
    return out, torch.where(empty, filler - torch.inf, lse).contiguous()


# --------------------------------------------------------------------------------------------------------------------
# torch's kernels
# --------------------------------------------------------------------------------------------------------------------


def torch_kernel(q: Tensor) -> Attend:
    """Choose the kernel of torch for q [n, H, D] on a GPU."""
    modern = torch.cuda.get_device_capability(q.device) >= (8, 0)
    if q.dtype == torch.bfloat16 and not modern:
        return _efficient_attention_in_float32
    if q.dtype == torch.float32 or not modern or q.shape[-1] > MOST_FLASH_WIDTH:
        return _efficient_attention
    return _flash_attention if torch.backends.cuda.is_flash_attention_available() else _efficient_attention


def _flash_attention(
    q: Tensor, k: Tensor, v: Tensor, q_starts: Tensor, k_starts: Tensor, most_queries: int, most_keys: int, scale: float
) -> tuple[Tensor, Tensor]:
    """`Attend` by flash attention. It writes +inf for a log-sum-exp that is NaN."""
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, q_starts, k_starts, most_queries, most_keys, 0.0, False, False, scale=scale
    )
    lse = lse.unflatten(1, (-1, most_queries)).transpose(0, 1)
    return out, lse.masked_fill(lse == math.inf, math.nan)


def _efficient_attention(
    q: Tensor, k: Tensor, v: Tensor, q_starts: Tensor, k_starts: Tensor, most_queries: int, most_keys: int, scale: float
) -> tuple[Tensor, Tensor]:
    """`Attend` by memory-efficient attention, which takes the sequences as a batch of one."""
    q, k, v = (x.unsqueeze(0) for x in (q, k, v))
    no_mask = 0
    out, lse, *_ = torch.ops.aten._efficient_attention_forward(
        q, k, v, None, q_starts, k_starts, most_queries, most_keys, 0.0, no_mask, True, scale=scale
    )
    return out.squeeze(0), lse[..., :most_queries]


def _efficient_attention_in_float32(q: Tensor, k: Tensor, v: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    """`Attend` in bfloat16 on GPUs without instructions for it."""
    out, lse = _efficient_attention(q.float(), k.float(), v.float(), *rest)  # type: ignore[arg-type]
    return out.to(q.dtype), lse
