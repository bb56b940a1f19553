# SPDX-License-Identifier: Apache-2.0
"""Tensor parallel (Megatron, arXiv 1909.08053, with the sharded norms of 2205.05198): a rank has a part of the weights.

The large linear layers come in pairs. Of the first one a rank computes a part of the outputs, for all tokens; of the
second one it has the same part of the inputs, and the results of all ranks are added. Between two pairs a rank has a
part of the tokens, so norms and gates are computed once. So per pair all tokens come (all-gather) and sums go
(all-to-all): 4 N d (n - 1) / n numbers per layer and rank, n times as many as with sequence parallel, for 1 / n of the
weights' memory.

torch's own `parallelize_module` is not used: its DTensors know neither the ops of this package nor parts of unequal
size (1,196 tokens on 8 ranks), and each of their operators costs tens of microseconds of a step that is not recorded.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from aapt_fast.distributed.layout import Layout, Shard
from aapt_fast.distributed.token_shards import TokenShards
from aapt_fast.distributed.transport import Transport, sum_over_ranks
from aapt_fast.models.files.read import Change
from aapt_fast.ops.cache import Cache


class OwnHeads:
    """A `Cache` as attention layers of a part of the heads see it; only a norm across all heads needs other ranks.

    Args:
        cache: of this rank's heads.
        transport: to the other ranks.
        eps: of the RMSNorm of queries and keys.
        across: whether this norm is over all heads together.
    """

    def __init__(self, cache: Cache, transport: Transport, eps: float, across: bool) -> None:
        self._cache, self._transport, self._eps, self._across = cache, transport, eps, across

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor | None, k_weight: Tensor | None
    ) -> Tensor:
        """As `Cache.attend`, for own heads: q, k, v and the result are [B, F, N, H / n, D]; so are weights' parts."""
        if self._across:
            assert q_weight is not None and k_weight is not None
            q, k = self._normalised(q, k, q_weight, k_weight)
            q_weight = k_weight = None
        return self._cache.attend(layer, q, k, v, q_weight, k_weight)

    def _normalised(self, q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor) -> tuple[Tensor, Tensor]:
        """RMSNorm across all heads of queries and keys [B, F, N, H / n, D], with one exchange for both."""
        wide = [x.flatten(-2).to(torch.promote_types(x.dtype, torch.float32)) for x in (q, k)]
        squares = torch.stack([x.square().sum(-1) for x in wide])  # [2, B, F, N]
        heads = self._transport.size * q.shape[-2] * q.shape[-1]
        scales = (sum_over_ranks(self._transport, squares) / heads + self._eps).rsqrt()[..., None]
        parts = zip(wide, scales, (q_weight, k_weight), strict=True)
        queries, keys = ((x * scale * weight).to(q.dtype).view(q.shape) for x, scale, weight in parts)
        return queries, keys


class TensorParallel:
    """The scheme of this file, for `sharded_generator.shard`."""

    name = "tp"

    def cut(self, generator: Any, layout: Layout, shards: TokenShards) -> dict[str, Change]:
        """Keep this rank's part of the weights, and let the pairs of linear layers exchange tokens.

        Returns the functions from whole parameters [...] to those parts, by name. Raises ValueError for a dimension
        that the ranks do not divide; nothing has changed then.
        """
        parameters = dict(generator.named_parameters())
        parts = {
            name: partial(part, shard=shard, name=name, transport=shards.transport)
            for name, shard in layout.shards.items()
        }
        with torch.no_grad():
            own = {name: in_own_memory(take(parameters[name])) for name, take in parts.items()}
            for name, kept in own.items():
                module, _, last = name.rpartition(".")
                parameter = nn.Parameter(kept, requires_grad=parameters[name].requires_grad)
                setattr(generator.get_submodule(module), last, parameter)
        for first, second in layout.wide:
            first.register_forward_pre_hook(partial(_gather_input, shards))
            second.register_forward_hook(partial(_sum_output, shards))
        return dict(parts)

    def cache(self, cache: Cache, shards: TokenShards, eps: float, across: bool) -> OwnHeads:
        """The cache of an attention layer that has all tokens and own heads."""
        return OwnHeads(cache, shards.transport, eps, across)


def part(weight: Tensor, shard: Shard, name: str, transport: Transport) -> Tensor:
    """The part of a parameter [...] that this rank keeps, a view if possible. Raises ValueError if it has none."""
    if shard.first_only:
        return weight.detach() if transport.rank == 0 else torch.zeros_like(weight)
    parts = shard.groups * transport.size
    length = weight.shape[shard.dim]
    if length % parts:
        raise ValueError(f"{name}: expected a dimension that {transport.size} ranks divide, got {list(weight.shape)}")
    grouped = weight.detach().unflatten(shard.dim, (shard.groups, transport.size, -1))
    return grouped.select(shard.dim + 1, transport.rank).flatten(shard.dim, shard.dim + 1)


def in_own_memory(part: Tensor) -> Tensor:
    """A contiguous copy of a part [...], so that the whole can be freed."""
    return part.clone(memory_format=torch.contiguous_format)


def _gather_input(shards: TokenShards, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """All tokens for the first argument, own ones [B, F, M, d] or [B, F M, d]; under autocast in its dtype."""
    x, *others = arguments
    kind = x.device.type
    if torch.is_autocast_enabled(kind):  # the linear layer would cast anyway: half of the bytes
        x = x.to(torch.get_autocast_dtype(kind))
    return (_by_frame(shards.gather, x, shards.own), *others)


def _sum_output(shards: TokenShards, module: nn.Module, arguments: tuple[Any, ...], result: Tensor) -> Tensor:
    """Own tokens of the sum over ranks of the results [B, F, N, d] or [B, F N, d]."""
    return _by_frame(shards.sum_to_tokens, result, shards.tokens)


def _by_frame(move: Any, x: Tensor, tokens: int) -> Tensor:
    """`move` of x, which is [B, F, tokens, d] or flat, [B, F tokens, d]; the result is flat if x is."""
    if x.dim() == 4:
        return move(x)
    return move(x.unflatten(1, (-1, tokens))).flatten(1, 2)
