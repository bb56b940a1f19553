# SPDX-License-Identifier: Apache-2.0
"""The caches of several sessions as one, so that one evaluation of the model makes the next frame of each.

Row b of a call is the next frame of cache b, whatever its number: rows have page lists and rotations of their own. The
lists are filled up to the longest one with entries that have no valid slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from aapt_fast.errors import require, require_shape
from aapt_fast.ops import PAGE_SLOTS, kv_write, normalise_and_rotate, paged_attention
from aapt_fast.streaming.paged_cache import PagedCache, StepPages


@dataclass(frozen=True)
class _JoinedPages:
    """`StepPages` of all rows."""

    rows: list[StepPages]
    own_ids: Tensor  # int32 [B, pages of a frame]
    page_ids: Tensor  # int32 [B, M]
    page_valid: Tensor  # int32 [B, M], 0 where a row has fewer entries
    rotation: tuple[Tensor, Tensor]  # cos, sin, float32 [B, N, D / 2]
    sinks: list[Tensor]  # per row with a sink of its own, its keys [layers, slots of a frame, Hkv, D]
    sink_ids: Tensor  # int64 [pages of all those sinks]
    sink_rotation: tuple[Tensor, Tensor] | None  # cos, sin, float32 [slots of all those sinks, D / 2]


class CacheBatch:
    """`ops.Cache` over the caches of several sessions, one frame per call and cache, inference only.

    Args:
        caches: at least one; of one pool, with as many tokens per frame, none of them twice. They belong to their
            sessions: nothing here needs to be released, and between two steps each may be used alone.

    Raises:
        ValueError: caches that do not fit together.
    """

    def __init__(self, caches: Sequence[PagedCache]) -> None:
        require(len(caches) > 0, "caches", "at least one", "none")
        require(len({id(cache) for cache in caches}) == len(caches), "caches", "each of them once", "one of them twice")
        self._pool, self._tokens = caches[0].pool, caches[0].tokens
        for cache in caches:
            require(cache.pool is self._pool, "caches", "caches of one pool", "caches of several")
            require(cache.tokens == self._tokens, "caches", f"{self._tokens} tokens per frame", cache.tokens)
        self._caches = caches
        self._step: _JoinedPages | None = None

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor | None, k_weight: Tensor | None
    ) -> Tensor:
        """See `Cache.attend`; q, k, v and the result are [B, 1, N, H or Hkv, D].

        Raises ValueError for another shape or dtype, PoolExhausted as `PagedCache.prepare` does.
        """
        layers = len(self._pool.by_layer)
        require(0 <= layer < layers, "layer", f"0..{layers - 1}", layer)
        require_shape("q", q, len(self._caches), 1, self._tokens, "H", "D")
        if self._step is None:
            self._step = _join([cache.prepare() for cache in self._caches])
        step, (k_pages, v_pages), eps = self._step, self._pool.by_layer[layer], self._caches[0].eps
        rotated_q = kv_write(
            q[:, 0], k[:, 0], v[:, 0], q_weight, k_weight, *step.rotation, k_pages, v_pages, step.own_ids, eps
        )
        for cache, keys in zip(self._caches, k[:, 0], strict=True):
            if cache.is_first():
                cache.keep_sink_keys(layer, keys, k_weight)
        if step.sink_rotation is not None:
            sinks = torch.cat([keys[layer] for keys in step.sinks])
            turned = normalise_and_rotate(sinks, None, *step.sink_rotation)
            k_pages.index_copy_(0, step.sink_ids, turned.unflatten(0, (-1, PAGE_SLOTS)))
        out, _ = paged_attention(rotated_q, k_pages, v_pages, step.page_ids, step.page_valid)
        for row in step.rows:
            row.attended.add(layer)
        return out[:, None]

    def advance(self, frames: int) -> None:
        """See `Cache.advance`. Raises RuntimeError unless `frames` is 1 and every layer has attended."""
        for cache in self._caches:
            cache.advance(frames)
        self._step = None


def _join(rows: list[StepPages]) -> _JoinedPages:
    cos, sin = (torch.stack(tables) for tables in zip(*(row.rotation for row in rows), strict=True))
    sinks = [(row.sink_keys, row.sink_ids, row.sink_rotation) for row in rows if row.sink_rotation is not None]
    keys, ids, rotations = zip(*sinks, strict=True) if sinks else ((), (), ())
    sink_cos, sink_sin = zip(*rotations, strict=True) if rotations else ((), ())
    return _JoinedPages(
        rows,
        torch.cat([row.page_ids[:, -len(row.own) :] for row in rows]),
        pad_sequence([row.page_ids[0] for row in rows], batch_first=True),
        pad_sequence([row.page_valid[0] for row in rows], batch_first=True),
        (cos, sin),
        list(keys),
        torch.cat(ids) if ids else torch.empty(0, dtype=torch.int64),
        (torch.cat(sink_cos), torch.cat(sink_sin)) if rotations else None,
    )
