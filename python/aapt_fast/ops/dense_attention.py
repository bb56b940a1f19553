# SPDX-License-Identifier: Apache-2.0
"""Attention over keys and values outside the page pool: plain tensors, or pages of another size.

Calls go through `paged_attention` or through torch's `scaled_dot_product_attention`:

    gradients recorded                          torch
    log-sum-exp wanted                          pages
    a compiled kernel is on and takes q         pages
    the user has named a kernel                 pages (it runs or raises)
    otherwise                                   torch: without a kernel, pages of plain tensors gain nothing

A plain tensor [B, L, Hkv, D] becomes a pool of pages without a copy where its memory allows it: pages are 64 tokens,
and tokens after the L-th are never read.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from aapt_fast.errors import require, require_shape
from aapt_fast.ops._checks import PAGE_DTYPES, PAGE_SLOTS, records_gradients
from aapt_fast.ops.kernels import KERNELS, kernels_on, running_kernel, selection
from aapt_fast.ops.paged_attention import paged_attention


def through_pages(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """True if `dense_attention` takes the pages for q [B, Nq, H, D], k and v [B, L, Hkv, D], without a log-sum-exp."""
    if records_gradients(q, k, v):
        return False
    if any(kernel.op == "paged_attention" and kernel.name in selection().names for kernel in KERNELS.values()):
        return True
    return _kernel_takes(q) and k.shape == v.shape and all(tensor.stride(-1) == 1 for tensor in (q, k, v))


def _kernel_takes(q: Tensor) -> bool:
    """True if a kernel of `paged_attention` is on that takes q [B, Nq, H, D]."""
    return any(kernel.refusal(q.dtype, q.shape[-1]) is None for kernel in kernels_on("paged_attention", q.device))


def dense_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, lengths: Tensor | None = None, with_lse: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Softmax attention of plain tensors, without a mask.

    Args:
        q: [B, Nq, H, D].
        k: [B, L, Hkv, D], H a multiple of Hkv.
        v: [B, L, Hkv, Dv].
        scale: factor on the scores; None means D ** -0.5.
        lengths: integers [B], the first `lengths[b]` keys of row b count; None: all do. With torch's attention they
            are read back to the host (not while a CUDA graph is captured), because without a mask it is faster.
        with_lse: also give the log-sum-exp. Inference only, Dv = D.

    Returns:
        out: [B, Nq, H, Dv] in q.dtype; 0 in a row without keys.
        lse: float32 [B, H, Nq], natural logarithm, or None without `with_lse`.

    Raises:
        ValueError: shapes, dtypes or devices do not fit.
        RuntimeError: `with_lse` while gradients are recorded.
    """
    _check(q, k, v, lengths)
    if not with_lse and not through_pages(q, k, v):
        return _torch_attention(q, k, v, scale, lengths), None
    out, lse = paged_attention(q, *as_pages(k, v, lengths), scale)
    return out, lse if with_lse else None


def table_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    table: Tensor,
    lengths: Tensor,
    scale: float | None = None,
    with_lse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Softmax attention over pages of any size, in the order of a table.

    Args:
        q: [B, Nq, H, D].
        k_cache: [P, S, Hkv, D]; where S is a multiple of 64, a page is S / 64 of ours, and nothing is copied.
        v_cache: [P, S, Hkv, D].
        table: integers [B, M], the pages of each row; entries after its length are not read.
        lengths: integers [B], tokens of each row.
        scale: factor on the scores; None means D ** -0.5.
        with_lse: also give the log-sum-exp.

    Returns, Raises: as `dense_attention`.
    """
    require_shape("k_cache", k_cache, "P", "S", "Hkv", "D")
    require_shape("table", table, q.shape[0], "M")
    require_shape("lengths", lengths, q.shape[0])
    size = k_cache.shape[1]
    if table.is_cpu and lengths.is_cpu:
        _check_table(table, lengths, k_cache)
    without_kernel = running_kernel("paged_attention", q.device) is None and not q.is_cpu
    if size % PAGE_SLOTS or records_gradients(q, k_cache, v_cache) or (without_kernel and not with_lse):
        used = torch.arange(table.shape[1], device=table.device) * size < lengths[:, None]
        pages = torch.where(used, table, 0).long()
        k, v = (cache[pages].flatten(1, 2) for cache in (k_cache, v_cache))
        return dense_attention(q, k, v, scale, lengths, with_lse)
    ours = size // PAGE_SLOTS
    k_pages, v_pages = (
        cache.unflatten(1, (ours, PAGE_SLOTS)).flatten(0, 1) for cache in (k_cache, v_cache)
    )  # views of contiguous caches
    ids = (table[:, :, None] * ours + torch.arange(ours, device=table.device)).flatten(1)
    out, lse = paged_attention(q, k_pages, v_pages, ids.int(), valid_counts(lengths, ids.shape[1]), scale)
    return out, lse if with_lse else None


def valid_counts(lengths: Tensor, pages: int) -> Tensor:
    """int32 [B, pages]: valid slots of each page when row b has `lengths` [B] tokens, filled page after page."""
    starts = PAGE_SLOTS * torch.arange(pages, device=lengths.device)
    return (lengths[:, None] - starts).clamp(0, PAGE_SLOTS).int()


def full_counts(batch: int, length: int, device: torch.device) -> Tensor:
    """int32 [B, ceil(length / 64)]: the same for rows that all have `length` tokens, in two launches."""
    pages = -(-length // PAGE_SLOTS)
    counts = torch.full((batch, pages), PAGE_SLOTS, dtype=torch.int32, device=device)
    counts[:, -1:] = length - (pages - 1) * PAGE_SLOTS
    return counts


def as_pages(k: Tensor, v: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Plain keys and values as `paged_attention` takes them.

    Args:
        k: [B, L, Hkv, D], for example a part of a larger cache.
        v: likewise.
        lengths: integers [B], or None: all L.

    Returns:
        k_pages, v_pages: [P, 64, Hkv, D], views of the same memory where that holds whole pages, else padded copies.
        page_ids, page_valid: int32 [B, ceil(L / 64)].
    """
    batch, length = k.shape[:2]
    pages = -(-length // PAGE_SLOTS)
    k_stride, v_stride = pages_per_row(k), pages_per_row(v)
    if k_stride is None or k_stride != v_stride:
        missing = pages * PAGE_SLOTS - length
        k, v = (F.pad(x, (0, 0, 0, 0, 0, missing)).contiguous() for x in (k, v))
        k_stride = pages
    count = (batch - 1) * k_stride + pages if batch else 0
    k_pages, v_pages = (
        x.as_strided((count, PAGE_SLOTS, *x.shape[2:]), (PAGE_SLOTS * x.stride(1), *x.stride()[1:])) for x in (k, v)
    )
    ids = torch.arange(batch * k_stride, dtype=torch.int32, device=k.device).view(batch, k_stride)[:, :pages]
    if lengths is None:
        return k_pages, v_pages, ids, full_counts(batch, length, k.device)
    return k_pages, v_pages, ids, valid_counts(lengths.to(k.device), pages)


def pages_per_row(x: Tensor) -> int | None:
    """From one row of x [B, L, H, D] to the next, in pages of its own memory; None: its memory holds no whole pages."""
    batch, length, heads, width = x.shape
    pages = -(-length // PAGE_SLOTS)
    page = PAGE_SLOTS * x.stride(1)
    if torch.compiler.is_compiling() or min(x.shape) == 0 or page == 0:  # a trace does not know the memory of x
        return None
    per_row, rest = (pages, 0) if batch == 1 else divmod(x.stride(0), page)
    last_token = ((batch - 1) * per_row + pages) * PAGE_SLOTS - 1
    last = last_token * x.stride(1) + (heads - 1) * x.stride(2) + (width - 1) * x.stride(3)
    elements = x.untyped_storage().nbytes() // x.element_size()
    return per_row if rest == 0 and per_row >= pages and x.storage_offset() + last < elements else None


def _torch_attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None, lengths: Tensor | None) -> Tensor:
    mask = None
    if lengths is not None:
        capturing = lengths.is_cuda and torch.cuda.is_current_stream_capturing()
        if not capturing and len(lengths):
            shortest, longest = (int(n) for n in lengths.aminmax())
            k, v = k[:, :longest], v[:, :longest]
            lengths = None if shortest == longest else lengths
    if lengths is not None:
        mask = torch.arange(k.shape[1], device=q.device) < lengths.to(q.device)[:, None]
        k, v = (torch.where(mask[..., None, None], x, 0) for x in (k, v))  # what does not count may be NaN
        mask = mask[:, None, None]
    if k.shape[1] == 0:
        return q.new_zeros((*q.shape[:3], v.shape[3]))
    queries, keys, values = (tensor.transpose(1, 2) for tensor in (q, k, v))
    grouped = q.shape[2] != k.shape[2]
    out = F.scaled_dot_product_attention(queries, keys, values, mask, scale=scale, enable_gqa=grouped).transpose(1, 2)
    return out if mask is None else torch.where(mask.any(-1)[..., None], out, 0)


def _check(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None) -> None:
    require_shape("q", q, "B", "Nq", "H", "D")
    require_shape("k", k, q.shape[0], "L", "Hkv", q.shape[3])
    require_shape("v", v, *k.shape[:3], "Dv")
    for name, tensor in (("k", k), ("v", v)):
        require(tensor.dtype == q.dtype, name, f"the dtype of q, {q.dtype}", tensor.dtype)
        require(tensor.device == q.device, name, f"the device of q, {q.device}", tensor.device)
    require(q.dtype in (*PAGE_DTYPES, torch.float64), "q", "a floating-point dtype that attention takes", q.dtype)
    heads, kv_heads = q.shape[2], k.shape[2]
    require(kv_heads > 0 and heads % kv_heads == 0, "q", f"a number of heads that {kv_heads} divides", heads)
    if lengths is None:
        return
    require_shape("lengths", lengths, q.shape[0])
    require(not lengths.is_floating_point(), "lengths", "integers", lengths.dtype)
    if lengths.is_cpu:
        inside = bool(((lengths >= 0) & (lengths <= k.shape[1])).all())
        require(inside, "lengths", f"0..{k.shape[1]} (the keys)", lengths.tolist())


def _check_table(table: Tensor, lengths: Tensor, cache: Tensor) -> None:
    pages, size = cache.shape[:2]
    room = table.shape[1] * size
    inside = bool(((lengths >= 0) & (lengths <= room)).all())
    require(inside, "lengths", f"0..{room} (the pages in the table)", lengths.tolist())
    used = table[torch.arange(table.shape[1]) * size < lengths[:, None]]
    inside = bool(((used >= 0) & (used < pages)).all())
    require(inside, "table", f"pages in 0..{pages - 1} (the cache)", used.tolist())
