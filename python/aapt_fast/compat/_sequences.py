# SPDX-License-Identifier: Apache-2.0
"""Attention of packed sequences and over caches, as both versions of FlashAttention define it."""

from __future__ import annotations

import torch
from torch import Tensor

from aapt_fast.errors import require, require_shape
from aapt_fast.ops.dense_attention import dense_attention, table_attention

Attended = tuple[Tensor, Tensor | None]
"""Result of attention, and its log-sum-exp in float32 (natural logarithm) or None."""


# ---- several sequences in one tensor ----


class Packed:
    """Sequences that lie one after the other in a tensor [T, H, D], by their boundaries.

    Args:
        argument: suffix of the arguments' names, "q" or "k".
        total: T.
        boundaries: int32 [B + 1], from 0 to T.
        longest: at least the length of the longest sequence.
        used: int32 [B], tokens at the front of each sequence that count; None: all.

    Raises ValueError if a shape does not fit, or, on the CPU, if the values do not. Values on a GPU are not read.
    """

    def __init__(self, argument: str, total: int, boundaries: Tensor, longest: int, used: Tensor | None = None) -> None:
        require_shape(f"cu_seqlens_{argument}", boundaries, "B + 1")
        require(len(boundaries) >= 1, f"cu_seqlens_{argument}", "at least one boundary", 0)
        self.total, self.boundaries, self.longest = total, boundaries.long(), int(longest)
        self.rows = len(boundaries) - 1
        lengths = self.boundaries.diff()
        if boundaries.is_cpu:
            rising = bool((lengths >= 0).all()) and int(boundaries[0]) == 0 and int(boundaries[-1]) == total
            expected = f"boundaries that rise from 0 to {total} (the tokens)"
            require(rising, f"cu_seqlens_{argument}", expected, boundaries.tolist())
            require_longest(argument, longest, lengths)
        if used is not None:
            require_shape(f"seqused_{argument}", used, self.rows)
            lengths = torch.minimum(lengths, used.long())
        self.equal = self.rows * self.longest == total
        self.full = self.equal and used is None
        self.lengths = lengths

    def rows_of(self, x: Tensor) -> Tensor:
        """[T, H, D] -> [B, longest, H, D]. Behind the end of a row lie tokens of other rows."""
        if self.equal:
            return x.unflatten(0, (self.rows, self.longest))
        if not self.total:
            return x.new_zeros((self.rows, self.longest, *x.shape[1:]))
        offsets = torch.arange(self.longest, device=self.boundaries.device)
        return x[(self.boundaries[:-1, None] + offsets).clamp(max=self.total - 1)]

    def joined(self, attended: Attended) -> Attended:
        """out [B, longest, H, D] and lse [B, H, longest] -> [T, H, D] and [H, T], 0 where a token does not count."""
        out, lse = attended
        return self._join(out), None if lse is None else self._join(lse.transpose(1, 2)).T

    def _join(self, rows: Tensor) -> Tensor:
        if self.full:
            return rows.flatten(0, 1)
        token = torch.arange(self.total, device=self.boundaries.device)
        row = torch.searchsorted(self.boundaries, token, right=True) - 1
        offset = token - self.boundaries[row]
        counts = (offset < self.lengths[row]).view(-1, *[1] * (rows.dim() - 2))
        return torch.where(counts, rows[row, offset], 0)


def require_longest(argument: str, longest: int, lengths: Tensor) -> None:
    """Raise ValueError if a length [B] on the CPU is more than `longest`."""
    if lengths.is_cpu and len(lengths):
        needed = int(lengths.max())
        require(longest >= needed, f"max_seqlen_{argument}", f"at least {needed}", longest)


def attend_packed(
    q: Tensor, k: Tensor, v: Tensor, queries: Packed, keys: Packed, scale: float | None, with_lse: bool
) -> Attended:
    """q [Tq, H, D], k and v [Tk, Hkv, D] -> out [Tq, H, D], lse [H, Tq] or None."""
    require(keys.rows == queries.rows, "cu_seqlens_k", f"{queries.rows} sequences as in cu_seqlens_q", keys.rows)
    lengths = None if keys.full else keys.lengths
    rows = (queries.rows_of(q), keys.rows_of(k), keys.rows_of(v))
    return queries.joined(dense_attention(*rows, scale, lengths, with_lse))


# ---- caches ----


def attend_cache(
    q: Tensor,
    caches: tuple[Tensor, Tensor],
    new: tuple[Tensor | None, Tensor | None],
    lengths: int | Tensor | None,
    rows: Tensor | None,
    pages: Tensor | None,
    table: str,
    scale: float | None,
    with_lse: bool,
) -> Attended:
    """Write new keys and values behind those of a cache, in place, and attend to all of them.

    Args:
        q: [B, Nq, H, D].
        caches: keys and values, [rows, S, Hkv, D], or with `pages` [P, S, Hkv, D].
        new: keys and values [B, n, Hkv, D], or two None.
        lengths: tokens in the cache, an int or integers [B]; None: S.
        rows: integers [B], the cache's row of each row of q, or None.
        pages: integers [B, M], the pages of each row, or None.
        table: name of the argument `pages`, for messages.
        scale: factor on the scores; None means D ** -0.5.
        with_lse: also give the log-sum-exp.

    Returns:
        out [B, Nq, H, D], lse [B, H, Nq] or None.

    Raises:
        TypeError: one of `new` is no tensor.
        ValueError: arguments do not fit together.
    """
    require_shape("k_cache", caches[0], "P", "S", "Hkv", "D")
    batch, size = q.shape[0], caches[0].shape[1]
    if pages is not None:
        require(rows is None, "cache_batch_idx", f"None together with {table}", "a tensor")
        require(lengths is not None, "cache_seqlens", f"the lengths that go with {table}", None)
    elif rows is not None:
        require_shape("cache_batch_idx", rows, batch)
    else:
        require(len(caches[0]) == batch, "k_cache", f"{batch} rows as in q", len(caches[0]))
    k, v = new
    require((k is None) == (v is None), "v", "k and v together", "one of them")
    require(k is None or lengths is not None, "cache_seqlens", "where to write k and v", None)
    if not isinstance(lengths, Tensor):
        lengths = torch.full((batch,), size if lengths is None else int(lengths), device=q.device)
    require_shape("cache_seqlens", lengths, batch)
    if k is not None and v is not None:
        lengths = _write(caches, (k, v), lengths, rows, pages)
    if pages is not None:
        return table_attention(q, *caches, pages, lengths, scale, with_lse)
    keys, values = caches if rows is None else (cache[rows.long()] for cache in caches)
    return dense_attention(q, keys, values, scale, lengths, with_lse)


def _write(
    caches: tuple[Tensor, Tensor],
    new: tuple[Tensor, Tensor],
    lengths: Tensor,
    rows: Tensor | None,
    pages: Tensor | None,
) -> Tensor:
    """Write new [B, n, Hkv, D] at `lengths` [B] into the caches, in place; the lengths after that."""
    k, v = new
    require_shape("k", k, len(lengths), "n", *caches[0].shape[2:])
    require_shape("v", v, *k.shape[:2], *caches[1].shape[2:])
    batch, count = k.shape[:2]
    size, after = caches[0].shape[1], lengths + count
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
        for cache, tensor in zip(caches, new, strict=True):
            cache[index] = tensor.to(cache.dtype)
    return after
