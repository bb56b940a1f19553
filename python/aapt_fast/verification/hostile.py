# SPDX-License-Identifier: Apache-2.0
"""Hostile inputs: what a kernel must survive without a caller having done anything wrong.

Pages and slots that are not listed hold NaN, unused entries of a page table hold absurd ids, tensors are strided
views into larger ones whose remaining elements are NaN, and lengths lie around the page size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

LENGTHS = (1, 63, 64, 65)
"""Tokens per frame: around the 64 slots of a page."""

ABSURD_PAGE = 2147480000
"""A page id that reads far outside any pool if it is looked at."""


def strided(tensor: torch.Tensor) -> torch.Tensor:
    """The same values as a view into a larger tensor: only the last dimension is dense, NaN (or -1) lies around."""
    filler = torch.nan if tensor.is_floating_point() else -1
    larger = tensor.new_full([size + 2 for size in tensor.shape], filler)
    view = larger[tuple(slice(1, size + 1) for size in tensor.shape)]
    return view.copy_(tensor.detach()).requires_grad_(tensor.requires_grad)


def padded_rows(tensor: torch.Tensor) -> torch.Tensor:
    """`strided`, as kernels take it: rows [..., D] dense and aligned to 16 bytes."""
    filler = torch.nan if tensor.is_floating_point() else -1
    pad = 16 // tensor.element_size()
    larger = tensor.new_full([*(size + 2 for size in tensor.shape[:-1]), tensor.shape[-1] + 2 * pad], filler)
    view = larger[(*(slice(1, size + 1) for size in tensor.shape[:-1]), slice(pad, pad + tensor.shape[-1]))]
    return view.copy_(tensor.detach()).requires_grad_(tensor.requires_grad)


def surrounded(tensor: torch.Tensor) -> torch.Tensor:
    """The same values [...], contiguous and aligned to 16 bytes, with NaN (or -1) before and after them in memory."""
    filler = torch.nan if tensor.is_floating_point() else -1
    pad = 64 // tensor.element_size()
    larger = tensor.new_full((tensor.numel() + 2 * pad,), filler)
    return larger[pad : pad + tensor.numel()].view(tensor.shape).copy_(tensor.detach())


def every_second(tensor: torch.Tensor) -> torch.Tensor:
    """The same values as a view whose last dimension has a stride of 2 elements, with NaN between them."""
    values = tensor.detach()
    view = torch.stack((values, torch.full_like(values, torch.nan)), -1)[..., 0]
    return view.requires_grad_(tensor.requires_grad)


@dataclass
class PagedCase:
    """Keys and values in pages, and the same as plain tensors."""

    k_pages: torch.Tensor  # [P, slots, Hkv, D], NaN outside the valid slots
    v_pages: torch.Tensor  # [P, slots, Hkv, D]
    page_ids: torch.Tensor  # int32 [B, M]
    page_valid: torch.Tensor  # int32 [B, M]
    keys: list[torch.Tensor]  # per row [S, Hkv, D], in the order of the table
    values: list[torch.Tensor]  # per row [S, Hkv, D]

    def permuted(self, order: torch.Tensor) -> PagedCase:
        """The same cache with physical page p moved to order[p]; unused entries stay as they are."""
        moved = torch.empty_like(order)
        moved[order] = torch.arange(len(order))
        used = self.page_valid > 0
        ids = torch.where(used, order[torch.where(used, self.page_ids, 0)], self.page_ids).int()
        return PagedCase(self.k_pages[moved], self.v_pages[moved], ids, self.page_valid, self.keys, self.values)


def paged_case(
    valid: Sequence[Sequence[int]],
    *,
    kv_heads: int = 2,
    head_dim: int = 16,
    slots: int = 64,
    spare_pages: int = 2,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> PagedCase:
    """Random keys and values in randomly placed pages.

    Args:
        valid: valid slots of each entry of each row's page table; rows of the same length, 0 for an unused entry.
        kv_heads: Hkv.
        head_dim: D.
        slots: slots of a page.
        spare_pages: pages of the pool that no row lists.
        dtype: of keys and values.
        device: of everything.
    """
    page_valid = torch.tensor(valid, dtype=torch.int32)
    used = page_valid > 0
    placement = torch.randperm(int(used.sum()) + spare_pages, dtype=torch.int32)
    page_ids = torch.full_like(page_valid, ABSURD_PAGE)
    page_ids[used] = placement[: int(used.sum())]
    k_pages = torch.full((len(placement), slots, kv_heads, head_dim), torch.nan, dtype=dtype)
    v_pages = k_pages.clone()
    keys: list[torch.Tensor] = []
    values: list[torch.Tensor] = []
    for ids, counts in zip(page_ids.tolist(), valid, strict=True):
        row = torch.randn(2, sum(counts), kv_heads, head_dim).to(dtype)
        start = 0
        for page, count in zip(ids, counts, strict=True):
            if count:
                k_pages[page, :count], v_pages[page, :count] = row[:, start : start + count]
                start += count
        keys.append(row[0].to(device))
        values.append(row[1].to(device))
    k_pages, v_pages = k_pages.to(device), v_pages.to(device)
    return PagedCase(k_pages, v_pages, page_ids.to(device), page_valid.to(device), keys, values)
