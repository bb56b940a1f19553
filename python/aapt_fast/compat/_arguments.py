# SPDX-License-Identifier: Apache-2.0
"""Refusing argument values in words, and what the signatures of FlashAttention share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aapt_fast.errors import require, require_shape, require_type
from aapt_fast.ops.dense_attention import dense_attention, table_attention

Attended = tuple[Tensor, Tensor | None]


class Supported:
    """The one or more values that an argument may have, by the name of the function that takes it."""

    def __init__(self, function: str) -> None:
        self.function = function

    def only(self, argument: str, value: Any, *supported: Any) -> None:
        """Raise NotImplementedError unless `value` is one of `supported`."""
        is_supported = any(
            value is want if want is None or isinstance(value, Tensor) else value == want for want in supported
        )
        if not is_supported:
            wanted = " or ".join(f"{argument}={want!r}" for want in supported)
            got = f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise NotImplementedError(f"{self.function}: only {wanted} is supported, got {got}")

    def full_attention(self, causal: bool, window_size: Sequence[int | None], softcap: float) -> None:
        """Every query sees every key, scores are taken as they are."""
        self.only("causal", causal, False)
        self.only("window_size", tuple(window_size), (-1, -1))
        self.only("softcap", softcap, 0)

    def repeatable(self, deterministic: bool, *tensors: Tensor) -> None:
        """The forward pass is deterministic always; the backward pass on a GPU is torch's own, which may not be."""
        self.only("deterministic", deterministic, False, True)
        backward = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        if deterministic and backward and not tensors[0].is_cpu:
            self.only("deterministic", deterministic, False)


def require_tensors(**arguments: object) -> None:
    """Raise TypeError, naming the argument, unless all of them are tensors; numpy arrays are none."""
    for name, value in arguments.items():
        require_type(name, value, Tensor)


def attend_dense(q: Tensor, k: Tensor, v: Tensor, scale: float | None, with_lse: bool) -> Attended:
    """q [B, Nq, H, D], k and v [B, L, Hkv, D] -> out [B, Nq, H, D], lse [B, H, Nq] or None."""
    return dense_attention(q, k, v, scale, with_lse=with_lse)


# ---- several sequences in one tensor ----


class Packed:
    """Sequences that lie one after the other in a tensor [T, H, D], by their boundaries.

    Args:
        argument: suffix of the arguments' names, "q" or "k".
        total: T.
        boundaries: int32 [B + 1], from 0 to T.
        longest: at least the length of the longest sequence.
        used: int32 [B], how much of the front of each sequence counts; None: all.
    """

    def __init__(self, argument: str, total: int, boundaries: Tensor, longest: int, used: Tensor | None = None) -> None:
        require_shape(f"cu_seqlens_{argument}", boundaries, "B + 1")
        require(len(boundaries) >= 1, f"cu_seqlens_{argument}", "at least one boundary", 0)
        self.total, self.boundaries, self.longest = total, boundaries.long(), int(longest)
        self.rows = len(boundaries) - 1
        self.lengths = self.boundaries.diff()
        if boundaries.is_cpu:  # on a GPU, looking at values would mean waiting for them
            rising = bool((self.lengths >= 0).all()) and int(boundaries[0]) == 0 and int(boundaries[-1]) == total
            expected = f"boundaries that rise from 0 to {total} (the tokens)"
            require(rising, f"cu_seqlens_{argument}", expected, boundaries.tolist())
            longest_here = int(self.lengths.max()) if self.rows else 0
            require(longest >= longest_here, f"max_seqlen_{argument}", f"at least {longest_here}", longest)
        self.equal = self.rows * self.longest == total
        if used is not None:
            require_shape(f"seqused_{argument}", used, self.rows)
        self.counted = self.lengths if used is None else torch.minimum(self.lengths, used.long())
        self.all_counted = used is None

    def rows_of(self, x: Tensor) -> Tensor:
        """[T, H, D] -> [B, longest, H, D]; what lies after the end of a row is that of other rows."""
        if self.equal:
            return x.unflatten(0, (self.rows, self.longest))
        if not self.total:
            return x.new_zeros((self.rows, self.longest, *x.shape[1:]))
        offsets = torch.arange(self.longest, device=self.boundaries.device)
        return x[(self.boundaries[:-1, None] + offsets).clamp(max=self.total - 1)]

    def lengths_or_none(self) -> Tensor | None:
        """Tokens [B] that count, or None if that is the whole of each row."""
        return None if self.equal and self.all_counted else self.counted

    def joined(self, rows: Tensor) -> Tensor:
        """[B, longest, ...] -> [T, ...], with zeros where a token does not count."""
        if self.lengths_or_none() is None:
            return rows.flatten(0, 1)
        token = torch.arange(self.total, device=self.boundaries.device)
        row = torch.searchsorted(self.boundaries, token, right=True) - 1
        offset = token - self.boundaries[row]
        counts = (offset < self.counted[row]).view(-1, *[1] * (rows.dim() - 2))
        return torch.where(counts, rows[row, offset], 0)


def attend_packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    queries: Packed,
    keys: Packed,
    scale: float | None,
    with_lse: bool,
) -> Attended:
    """q [Tq, H, D], k and v [Tk, Hkv, D] -> out [Tq, H, D], lse [H, Tq] or None."""
    require(keys.rows == queries.rows, "cu_seqlens_k", f"{queries.rows} sequences as in cu_seqlens_q", keys.rows)
    rows = (queries.rows_of(q), keys.rows_of(k), keys.rows_of(v))
    return _join(dense_attention(*rows, scale, keys.lengths_or_none(), with_lse), queries)


def attend_packed_to_table(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    queries: Packed,
    lengths: Tensor,
    table: Tensor,
    scale: float | None,
    with_lse: bool,
) -> Attended:
    """q [Tq, H, D] over pages [P, S, Hkv, D] with table [B, M], lengths [B] -> out [Tq, H, D], lse [H, Tq] or None."""
    rows = queries.rows_of(q)
    return _join(table_attention(rows, k_cache, v_cache, table, lengths, scale, with_lse), queries)


def _join(attended: Attended, queries: Packed) -> Attended:
    out, lse = attended
    return queries.joined(out), None if lse is None else queries.joined(lse.transpose(1, 2)).T


# ---- caches ----


def attend_cache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    new: tuple[Tensor, Tensor] | None,
    lengths: int | Tensor | None,
    rows: Tensor | None,
    table: tuple[str, Tensor | None],
    scale: float | None,
    with_lse: bool,
) -> Attended:
    """What `flash_attn_with_kvcache` of both versions does; `new` is written behind `lengths` into the caches first.

    q [B, Nq, H, D]; caches [rows, S, Hkv, D], with a table (its name and pages [B, M]) [P, S, Hkv, D]; new k and v
    [B, n, Hkv, D]; lengths: tokens in the cache, an int or [B]; rows [B]: the cache's row of each row of q.
    """
    batch, (table_name, pages) = q.shape[0], table
    require_shape("k_cache", k_cache, "P", "S", "Hkv", "D")
    if pages is not None:
        require(rows is None, "cache_batch_idx", f"None together with {table_name}", "a tensor")
        require(lengths is not None, "cache_seqlens", f"the lengths that go with {table_name}", None)
    elif rows is not None:
        require_shape("cache_batch_idx", rows, batch)
    else:
        require(k_cache.shape[0] == batch, "k_cache", f"{batch} rows as in q", k_cache.shape[0])
    if lengths is None:
        require(new is None, "cache_seqlens", "where to write k and v", None)
        lengths = k_cache.shape[1]
    if not isinstance(lengths, Tensor):
        lengths = torch.full((batch,), int(lengths), device=q.device)
    require_shape("cache_seqlens", lengths, batch)
    if new is not None:
        lengths = _write(k_cache, v_cache, new, lengths, rows, pages)
    if pages is not None:
        return table_attention(q, k_cache, v_cache, pages, lengths, scale, with_lse)
    if rows is not None:
        k_cache, v_cache = k_cache[rows.long()], v_cache[rows.long()]
    return dense_attention(q, k_cache, v_cache, scale, lengths, with_lse)


def _write(
    k_cache: Tensor,
    v_cache: Tensor,
    new: tuple[Tensor, Tensor],
    lengths: Tensor,
    rows: Tensor | None,
    pages: Tensor | None,
) -> Tensor:
    """Write new [B, n, Hkv, D] at `lengths` [B] into the caches, in place; the lengths after that."""
    k, v = new
    batch, count = k.shape[:2]
    size = k_cache.shape[1]
    require_shape("k", k, len(lengths), "n", *k_cache.shape[2:])
    require_shape("v", v, batch, count, *v_cache.shape[2:])
    after = lengths + count
    room = size if pages is None else size * pages.shape[1]
    if after.is_cpu and batch:
        require(int(after.max()) <= room, "cache_seqlens", f"at most {room - count}, to write k", lengths.tolist())
    positions = lengths[:, None].long() + torch.arange(count, device=lengths.device)
    if pages is None:
        places = torch.arange(batch, device=lengths.device) if rows is None else rows.long()
        index = (places[:, None].expand_as(positions), positions)
    else:
        index = (pages.long().gather(1, positions // size), positions % size)
    with torch.no_grad():
        k_cache[index], v_cache[index] = k.to(k_cache.dtype), v.to(v_cache.dtype)
    return after
