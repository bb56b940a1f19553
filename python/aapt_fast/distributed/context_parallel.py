# SPDX-License-Identifier: Apache-2.0
"""Context parallel: sequence parallel (Ulysses) with gradients, for training on rows too long for one device.

Ranks of one context have the same rows. Between the first layer and the last, each has its tokens of every frame; in
attention, all tokens of its heads (sequence_parallel.py). In the backward pass each exchange becomes its transpose:

    all_to_all    all_to_all
    all_gather    all_to_all, and a sum: every rank has used what this one gave

So, of the sum of what the ranks each compute as their loss, a rank has the gradient with respect to its own copy of the
weights and inputs. All of them compute the same loss: the mean of their gradients over ranks is the gradient of it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from aapt_fast.distributed.layout import layout_of
from aapt_fast.distributed.sequence_parallel import SequenceParallel
from aapt_fast.distributed.sharded_generator import exchange_tokens
from aapt_fast.distributed.token_shards import TokenShards
from aapt_fast.distributed.transport import Transport
from aapt_fast.errors import require


class DifferentiableTransport:
    """The `Transport` under another, with gradients of what moves tokens."""

    def __init__(self, transport: Transport) -> None:
        self.rank, self.size, self._transport = transport.rank, transport.size, transport

    def all_to_all(self, parts: Tensor) -> Tensor:
        """See `Transport.all_to_all`: [size, ...] -> [size, ...]."""
        return _AllToAll.apply(parts, self._transport)

    def all_gather(self, x: Tensor) -> Tensor:
        """See `Transport.all_gather`: [...] -> [size, ...]."""
        return _AllGather.apply(x, self._transport)

    def neighbours(self, to_previous: Tensor, to_next: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """See `Transport.neighbours`: [...] each, without gradient."""
        return self._transport.neighbours(to_previous, to_next)

    def gather(self, value: Any) -> list[Any]:
        """See `Transport.gather`."""
        return self._transport.gather(value)

    def broadcast(self, value: Any) -> Any:
        """See `Transport.broadcast`."""
        return self._transport.broadcast(value)


def share_tokens(model: Any, transport: Transport) -> None:
    """Let the ranks of `transport` share the tokens of each row in a `Generator` or `Discriminator`.

    To be called before its weights are cut. Its `forward` takes and gives the same as before, on every rank.
    Raises ValueError for heads that the ranks do not divide, and for another network.
    """
    trunk = getattr(model, "trunk", model)
    layout, heads = layout_of(trunk), trunk.config.heads
    require(heads % transport.size == 0, "context", f"a number that divides {heads} heads", transport.size)
    shards = TokenShards(DifferentiableTransport(transport))
    exchange_tokens(trunk, layout, SequenceParallel(), shards)
    if trunk is not model:  # heads that look at all tokens of a frame
        for head in model.heads:
            head.register_forward_pre_hook(partial(_gather_tokens, shards))


def _gather_tokens(shards: TokenShards, module: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
    """All tokens [B, F, N, d] of the own ones [B, F, M, d]."""
    return (shards.gather(arguments[0]),)


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, parts: Tensor, transport: Transport) -> Tensor:  # type: ignore[override]
        context.transport = transport
        return transport.all_to_all(parts)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return context.transport.all_to_all(gradient.contiguous()), None


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, transport: Transport) -> Tensor:  # type: ignore[override]
        context.transport = transport
        return transport.all_gather(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        of_all = context.transport.all_to_all(gradient.contiguous())
        return of_all.float().sum(0).to(gradient.dtype), None
