# SPDX-License-Identifier: Apache-2.0
"""Argument checks that several ops share. They look at shapes, dtypes and devices only, never at values."""

from __future__ import annotations

import torch
from torch import Tensor

from aapt_fast.errors import require, require_device, require_dtype, require_shape

PAGE_SLOTS = 64
PAGE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_tensor(
    argument: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    """Raise ValueError unless `tensor` has exactly this shape, dtype and device."""
    if isinstance(tensor, Tensor) and tensor.shape == shape and tensor.dtype == dtype and tensor.device == device:
        return  # the common case, without building any message
    require_shape(argument, tensor, *shape)
    require_dtype(argument, tensor, dtype)
    require_device(argument, tensor, device)


def check_pages(k_pages: Tensor, v_pages: Tensor) -> None:
    """Raise ValueError unless both are [P, 64, Hkv, D] of one supported dtype on one device."""
    require_shape("k_pages", k_pages, "P", PAGE_SLOTS, "Hkv", "D")
    require_dtype("k_pages", k_pages, *PAGE_DTYPES)
    check_tensor("v_pages", v_pages, k_pages.shape, k_pages.dtype, k_pages.device)


def check_queries(q: Tensor, pages: Tensor) -> None:
    """Raise ValueError unless `q` is [B, Nq, H, D] and fits `pages` [P, 64, Hkv, D]: dtype, device, D, H % Hkv."""
    require_shape("q", q, "B", "Nq", "H", pages.shape[3])
    require_dtype("q", q, pages.dtype)
    require_device("q", q, pages.device)
    heads, kv_heads = q.shape[2], pages.shape[2]
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(f"q: expected a number of heads that is a multiple of the pages' {kv_heads}, got {heads}")


def check_page_id(page: int, pages: int, row: int) -> None:
    """Raise ValueError unless `page` is in a pool of `pages`."""
    if not 0 <= page < pages:
        raise ValueError(f"page_ids: expected ids in 0..{pages - 1} (the pool), got {page} in row {row}")


def records_gradients(*tensors: Tensor | None) -> bool:
    """True if a call with these tensors [...] records gradients."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def check_inference(op: str, *tensors: Tensor | None, training: str = "ops.GrowingCache") -> None:
    """Raise RuntimeError, with what training uses, if autograd would have to differentiate an op without a backward."""
    if records_gradients(*tensors):
        raise RuntimeError(f"{op} has no backward: call it under torch.no_grad() (training uses {training})")


def check_vector(argument: str, vector: Tensor, sizes: tuple[int, ...], device: torch.device) -> None:
    """Raise ValueError unless `vector` is floating point [n] on `device`, with n one of `sizes`."""
    fits = vector.dim() == 1 and vector.shape[0] in sizes and vector.is_floating_point() and vector.device == device
    if fits:
        return
    require(vector.is_floating_point(), argument, "a floating point dtype", vector.dtype)
    require_device(argument, vector, device)
    raise ValueError(f"{argument}: expected shape {' or '.join(f'[{n}]' for n in sizes)}, got {list(vector.shape)}")
