# SPDX-License-Identifier: Apache-2.0
"""RMSNorm and rotary position of queries and keys, and the write of keys and values into pages, as one op.

Per token n, with pair i of a head being elements 2i and 2i + 1:

    y = x / sqrt(mean(x^2) + eps) * weight          mean over one head (weight [D]) or over all heads (weight [H * D])
    z[2i]     = y[2i] cos[n, i] - y[2i + 1] sin[n, i]
    z[2i + 1] = y[2i] sin[n, i] + y[2i + 1] cos[n, i]

Rows at different places of their streams have angles of their own, cos[b, n, i]. The norm drops out where the weight
is None, the rotation where cos and sin are. Token n goes to slot n % 64 of page `page_ids[b, n // 64]`: a frame starts
on a page, and what its last page has left over stays as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aapt_fast.errors import require
from aapt_fast.ops._checks import (
    PAGE_SLOTS,
    check_inference,
    check_page_id,
    check_pages,
    check_queries,
    check_tensor,
    check_vector,
)
from aapt_fast.ops.kernels import Kernel
from aapt_fast.ops.registry import register


def kv_write(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    k_pages: Tensor,
    v_pages: Tensor,
    page_ids: Tensor,
    eps: float = 1e-6,
) -> Tensor:
    """Normalise and rotate q and k, write k and v to slots 0..N-1 of the listed pages. Inference only.

    Args:
        q: [B, N, H, D], float32, bfloat16 or float16, before norm and rotation; D is even.
        k: [B, N, Hkv, D], same dtype; H is a multiple of Hkv.
        v: [B, N, Hkv, D], same dtype; written as it is.
        q_weight: floating point [D] (norm per head), [H * D] (norm across heads), or None (no norm).
        k_weight: likewise with Hkv.
        cos: float32 [N, D / 2], shared by all rows and heads, or [B, N, D / 2], by all heads; None for no rotation, for
            example of text.
        sin: likewise; both or neither.
        k_pages: [P, 64, Hkv, D], same dtype as q; changed in place.
        v_pages: [P, 64, Hkv, D]; changed in place.
        page_ids: int32 [B, ceil(N / 64)], the pages of each row in token order; no page twice.
        eps: added to the mean square.

    Returns:
        [B, N, H, D] in q.dtype: the normalised and rotated queries, computed in float32.

    Raises:
        ValueError: wrong shape, dtype or device of an argument; on the CPU also a page id outside the pool or listed
            twice.
        RuntimeError: an input requires a gradient while gradients are recorded.

    On a GPU, where looking at the page ids would mean waiting for them, a kernel writes nothing outside the pool: it
    drops keys and values of a token whose page id is outside, and makes its queries NaN.
    """
    check_pages(k_pages, v_pages)
    check_queries(q, k_pages)
    batch, tokens, heads, width = q.shape
    kv_heads = k_pages.shape[2]
    check_tensor("k", k, (batch, tokens, kv_heads, width), q.dtype, q.device)
    check_tensor("v", v, k.shape, q.dtype, q.device)
    if q_weight is not None:
        check_vector("q_weight", q_weight, (width, heads * width), q.device)
    if k_weight is not None:
        check_vector("k_weight", k_weight, (width, kv_heads * width), q.device)
    _check_rotation(q, cos, sin)
    check_tensor("page_ids", page_ids, (batch, -(-tokens // PAGE_SLOTS)), torch.int32, q.device)
    check_inference("kv_write", q, k, v, q_weight, k_weight)
    return _call(q, k, v, q_weight, k_weight, cos, sin, k_pages, v_pages, page_ids, eps)


def normalise_and_rotate(
    x: Tensor, weight: Tensor | None, cos: Tensor | None, sin: Tensor | None, eps: float = 1e-6
) -> Tensor:
    """The differentiable part of `kv_write`: RMSNorm and rotation, computed in float32 (float64 if x is).

    Args:
        x: [..., N, H, D].
        weight: [D] (norm per head), [H * D] (norm across heads), or None (no norm).
        cos: float32 [N, D / 2], or [B, N, D / 2] for x [B, N, H, D]; None for no rotation.
        sin: likewise.
        eps: added to the mean square.

    Returns:
        [..., N, H, D] in x.dtype; `x` itself if there is nothing to do.

    Raises:
        ValueError: wrong shape or device of weight, cos or sin.
    """
    if weight is not None:
        check_vector("weight", weight, (x.shape[-1], x.shape[-2] * x.shape[-1]), x.device)
    _check_rotation(x, cos, sin)
    return _normalise_and_rotate(x, weight, _rotation(cos, sin), eps)


def _check_rotation(x: Tensor, cos: Tensor | None, sin: Tensor | None) -> None:
    """Raise ValueError unless cos and sin are both None, or both float32 [N, D / 2] or [B, N, D / 2] for x."""
    if cos is None and sin is None:
        return
    require(cos is not None, "cos", "a tensor, as sin is one", None)
    require(sin is not None, "sin", "a tensor, as cos is one", None)
    tokens, width = x.shape[-3], x.shape[-1]
    require(width % 2 == 0, "cos", "None, as the head width is odd", "a tensor")
    assert cos is not None
    per_row = cos.ndim == 3 and x.ndim == 4
    shape = (*x.shape[:1], tokens, width // 2) if per_row else (tokens, width // 2)
    check_tensor("cos", cos, shape, torch.float32, x.device)
    check_tensor("sin", sin, shape, torch.float32, x.device)


def _rotation(cos: Tensor | None, sin: Tensor | None) -> Tensor | None:
    """Cos and sin [..., N, D / 2] as complex numbers [..., N, 1, D / 2], the same for all heads."""
    return None if cos is None or sin is None else torch.complex(cos, sin).unsqueeze(-2)


def _normalise_and_rotate(x: Tensor, weight: Tensor | None, rotation: Tensor | None, eps: float) -> Tensor:
    if weight is None and rotation is None:
        return x
    y = x if x.dtype == torch.float64 else x.float()
    if weight is not None:
        groups = y.flatten(-2) if weight.shape[0] != y.shape[-1] else y
        y = torch.nn.functional.rms_norm(groups, weight.shape, weight.to(y.dtype), eps).view(y.shape)
    if rotation is not None:
        pairs = torch.view_as_complex(y.contiguous().unflatten(-1, (-1, 2)))  # [..., N, H, D / 2]
        y = torch.view_as_real(pairs * rotation).flatten(-2)
    return y.to(x.dtype)


def _composition(*arguments: Any) -> Tensor:
    q, k, v, q_weight, k_weight, cos, sin, k_pages, v_pages, page_ids, eps = arguments
    _check_page_ids(page_ids, k_pages.shape[0])
    rotation, ids = _rotation(cos, sin), page_ids.long()
    _write(_normalise_and_rotate(k, k_weight, rotation, eps), k_pages, ids)
    _write(v, v_pages, ids)
    rotated = _normalise_and_rotate(q, q_weight, rotation, eps)
    return rotated.clone() if rotated is q else rotated.contiguous()  # an op may not return its input


def _write(tokens: Tensor, pages: Tensor, ids: Tensor) -> None:
    """Copy tokens [B, N, Hkv, D] to pages int64 [B, M]: first the full ones, then the part of the last one."""
    full, rest = divmod(tokens.shape[1], PAGE_SLOTS)
    if full:
        paged = tokens[:, : full * PAGE_SLOTS].unflatten(1, (full, PAGE_SLOTS)).flatten(0, 1)
        pages.index_copy_(0, ids[:, :full].flatten(), paged)
    if rest:
        pages[:, :rest].index_copy_(0, ids[:, full], tokens[:, full * PAGE_SLOTS :])


def _check_page_ids(page_ids: Tensor, pages: int) -> None:
    """Raise ValueError unless each of page_ids [B, M] is in a pool of `pages` and listed once; not read on a GPU."""
    if not page_ids.is_cpu:
        return
    seen: set[int] = set()
    for row, ids in enumerate(page_ids.tolist()):
        for page in ids:
            check_page_id(page, pages, row)
            require(page not in seen, "page_ids", "every page once", f"{page} again in row {row}")
            seen.add(page)


def _allocate(q: Tensor, *_: Any) -> Tensor:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


def _bind(kernel: Kernel, *arguments: Any) -> tuple[Tensor, tuple[Any, ...]]:
    q, k, v, q_weight, k_weight, cos, sin, k_pages, v_pages, page_ids, eps = arguments
    _check_page_ids(page_ids, k_pages.shape[0])
    rotated = _allocate(q)
    if cos is not None:
        cos, sin = (table.expand(q.shape[0], q.shape[1], q.shape[3] // 2) for table in (cos, sin))
    return rotated, (q, k, v, q_weight, k_weight, cos, sin, k_pages, v_pages, page_ids, rotated, eps)


_call = register(
    "kv_write(Tensor q, Tensor k, Tensor v, Tensor? q_weight, Tensor? k_weight, Tensor? cos, Tensor? sin,"
    " Tensor(a!) k_pages, Tensor(b!) v_pages, Tensor page_ids, float eps) -> Tensor",
    _composition,
    allocate=_allocate,
    bind=_bind,
)
