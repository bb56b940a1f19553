# SPDX-License-Identifier: Apache-2.0
"""Sequence parallel (Ulysses, arXiv 2309.14509): every rank has all weights and a part of the tokens.

Attention is the only layer that needs other tokens. For it, queries, keys and values of a part of the heads go to each
rank, and results come back: two all-to-all per layer, of 4 N d / n numbers per rank together, whatever the window,
since the cache of a rank holds the past of its own heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aapt_fast.distributed.layout import Layout
from aapt_fast.distributed.token_shards import TokenShards
from aapt_fast.models.files.read import Change
from aapt_fast.ops.cache import Cache
from aapt_fast.ops.kv_write import normalise_and_rotate


class ExchangedHeads:
    """A `Cache` as a network with a part of the tokens sees it; `cache` has all tokens, and a part of the heads.

    Args:
        cache: of this rank's heads.
        shards: of the network.
        eps: of the RMSNorm of queries and keys.
        across: whether this norm is over all heads together.
    """

    def __init__(self, cache: Cache, shards: TokenShards, eps: float, across: bool) -> None:
        self._cache, self._shards, self._eps, self._across = cache, shards, eps, across

    def moment(self, layer: int) -> ExchangedHeads:
        """The same view of the cache's moment; see `GrowingCache.moment`."""
        cache: Any = self._cache
        return ExchangedHeads(cache.moment(layer), self._shards, self._eps, self._across)

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor | None, k_weight: Tensor | None
    ) -> Tensor:
        """As `Cache.attend`, for own tokens: q, k, v and the result are [B, F, M, H, D]."""
        if self._across:  # all heads are here only now
            q, k = (normalise_and_rotate(x, w, None, None, self._eps) for x, w in ((q, q_weight), (k, k_weight)))
            q_weight = k_weight = None
        q, k, v = self._shards.to_heads(torch.cat((q, k, v))).chunk(3)
        return self._shards.to_tokens(self._cache.attend(layer, q, k, v, q_weight, k_weight))


class SequenceParallel:
    """The scheme of this file, for `sharded_generator.shard`."""

    name = "sp"

    def cut(self, generator: Any, layout: Layout, shards: TokenShards) -> dict[str, Change]:
        """Nothing: all weights stay as they are."""
        return {}

    def cache(self, cache: Cache, shards: TokenShards, eps: float, across: bool) -> ExchangedHeads:
        """The cache of an attention layer that has own tokens and all heads."""
        return ExchangedHeads(cache, shards, eps, across)
