# SPDX-License-Identifier: Apache-2.0
"""The tokens of frames on n ranks: which rank has which, and how they move.

Between the blocks of a network, each rank has a part of the tokens of every frame. Attention needs all tokens, and
there each rank has a part of the heads. Shapes: B rows, F frames, N tokens of a frame, M = ceil(N / n) tokens of a
rank, H heads of width D.

    split           [B, F, N, ...]      ->  [B, F, M, ...]      a slice; nothing moves
    gather          [B, F, M, ...]      ->  [B, F, N, ...]      all-gather
    to_heads        [B, F, M, H, D]     ->  [B, F, N, H/n, D]   all-to-all
    to_tokens       [B, F, N, H/n, D]   ->  [B, F, M, H, D]     all-to-all
    sum_to_tokens   [B, F, N, d]        ->  [B, F, M, d]        all-to-all, then a sum over what came from all ranks

N is filled up with zero tokens to n M, so that all parts have one size. These tokens pass through the layers that look
at one token at a time, and are dropped before attention and at the end: at most n - 1 of N (4 of 1,196 at 736 x 416).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from aapt_fast.distributed.transport import Transport


class TokenShards:
    """Moves the tokens of one network's evaluation among the ranks of `transport`."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.tokens = 0
        """N, of the present evaluation."""

    @property
    def own(self) -> int:
        """M, the tokens of a frame that a rank has."""
        return -(-self.tokens // self.transport.size)

    def split(self, x: Tensor) -> Tensor:
        """The own tokens [B, F, M, ...] of x [B, F, N, ...]."""
        return self._padded(x).narrow(2, self.transport.rank * self.own, self.own).contiguous()

    def gather(self, x: Tensor) -> Tensor:
        """All tokens [B, F, N, ...], of the own ones of all ranks, [B, F, M, ...]."""
        parts = self.transport.all_gather(x.contiguous())
        return parts.movedim(0, 2).flatten(2, 3)[:, :, : self.tokens].contiguous()

    def to_heads(self, x: Tensor) -> Tensor:
        """From own tokens with all heads [B, F, M, H, D] to all tokens with own heads [B, F, N, H / n, D]."""
        by_rank = x.unflatten(3, (self.transport.size, -1)).movedim(3, 0).contiguous()
        parts = self.transport.all_to_all(by_rank)
        return parts.movedim(0, 2).flatten(2, 3)[:, :, : self.tokens].contiguous()

    def to_tokens(self, x: Tensor) -> Tensor:
        """From all tokens with own heads [B, F, N, H / n, D] to own tokens with all heads [B, F, M, H, D]."""
        parts = self.transport.all_to_all(self._by_owner(x))
        return parts.movedim(0, 3).flatten(3, 4)

    def sum_to_tokens(self, x: Tensor) -> Tensor:
        """Own tokens [B, F, M, d] of the sum of all ranks' x [B, F, N, d]; added in float32."""
        return self.transport.all_to_all(self._by_owner(x)).float().sum(0).to(x.dtype)

    def _padded(self, x: Tensor) -> Tensor:
        """[B, F, N, ...] -> [B, F, n M, ...]."""
        missing = self.own * self.transport.size - self.tokens
        return F.pad(x, (0, 0) * (x.dim() - 3) + (0, missing)) if missing else x

    def _by_owner(self, x: Tensor) -> Tensor:
        """[B, F, N, ...] -> [n, B, F, M, ...], contiguous: the tokens of each rank."""
        return self._padded(x).unflatten(2, (self.transport.size, self.own)).movedim(2, 0).contiguous()
