# SPDX-License-Identifier: Apache-2.0
"""The key-value cache of one session in pages, for models that make blocks of frames.

What a block sees is defined in `aapt_fast.ops.block_cache`. Every frame starts on a page, so the list of a step is

    sink | past frames of the window | own frames

and is the same in all layers. Keys stay as they were rotated: nothing but the block's own pages is ever written again,
so that forks share all the others. A frame that no later block sees gives its pages back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from aapt_fast.errors import require, require_shape
from aapt_fast.ops import kv_write, paged_attention
from aapt_fast.ops.block_cache import Blocks
from aapt_fast.streaming.pages import PagePool, pages_for, valid_slots


def block_pages_needed(tokens: int, blocks: Blocks) -> int:
    """The most pages that a cache of blocks holds at a time: those of its window, which counts sink and block.

    Raises ValueError for a rule without a window: a stream would not fit any memory.
    """
    require(blocks.window is not None, "window", "a number of frames: a stream has no end", None)
    assert blocks.window is not None
    return blocks.window * pages_for(tokens)


@dataclass
class _Step:
    """What all layers and evaluations of one block share."""

    own: list[list[int]]  # pages of each frame
    own_ids: list[Tensor]  # of each frame, int32 [1, pages of a frame]
    page_ids: Tensor  # int32 [1, M]
    page_valid: Tensor  # int32 [1, M]
    rotations: list[tuple[Tensor, Tensor]]  # of each frame, cos and sin, float32 [N, D / 2]
    attended: set[int] = field(default_factory=set)  # layers


class PagedBlockCache:
    """`ops.Cache` of one session: batch 1, one block per call, inference only.

    Until `advance`, a layer may attend again, at another level of noise: its keys and values replace the earlier ones.

    Args:
        pool: where keys and values go. `block_pages_needed` pages are reserved until `release`.
        rope: gives (cos, sin), float32 [N, D / 2] each, for a frame index; for example a `FrameRope`.
        tokens: N, tokens per frame.
        blocks: what a frame sees. A call has at most `blocks.frames` frames.
        eps: of the RMSNorm.

    Raises:
        ValueError: tokens < 1, or blocks without a window.
        PoolExhausted: too few pages are available; the pool stays as it was.
    """

    def __init__(
        self,
        pool: PagePool,
        rope: Callable[[int], tuple[Tensor, Tensor]],
        tokens: int,
        blocks: Blocks,
        *,
        eps: float = 1e-6,
    ) -> None:
        require(tokens >= 1, "tokens", "at least 1 per frame", tokens)
        self._reserved = block_pages_needed(tokens, blocks)
        pool.reserve(self._reserved)
        self.pool, self.rope, self.tokens, self.blocks, self.eps = pool, rope, tokens, blocks, eps
        self.next_frame = 1
        self._past: dict[int, list[int]] = {}  # pages by frame, oldest first
        self._step: _Step | None = None  # between prepare and advance
        self._released = False

    def prepare(self, frames: int) -> None:
        """Take the pages of the next `frames` frames; `attend` does it where it has not been done.

        Raises ValueError for another number than has been prepared already, or more than a block has; PoolExhausted,
        having changed nothing but forgotten what the block cannot see, if somebody without a reservation has taken
        the pages.
        """
        if self._released:
            raise RuntimeError("cache: it has been released")
        require(1 <= frames <= self.blocks.frames, "frames", f"1..{self.blocks.frames}, a block", frames)
        if self._step is None:
            self._step = self._plan(frames)
        require(len(self._step.own) == frames, "frames", f"{len(self._step.own)}, as prepared", frames)

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor | None, k_weight: Tensor | None
    ) -> Tensor:
        """See `Cache.attend`; q, k, v and the result are [1, n, N, H or Hkv, D].

        Raises ValueError for another shape or dtype, PoolExhausted as `prepare` does.
        """
        require(0 <= layer < len(self.pool.by_layer), "layer", f"0..{len(self.pool.by_layer) - 1}", layer)
        require_shape("q", q, 1, "n", self.tokens, "H", "D")
        require_shape("k", k, 1, q.shape[1], self.tokens, "Hkv", q.shape[-1])
        require_shape("v", v, *k.shape)
        self.prepare(q.shape[1])
        step, (k_pages, v_pages) = self._step, self.pool.by_layer[layer]
        assert step is not None
        weights = (q_weight, k_weight)
        rotated = [
            kv_write(q[:, i], k[:, i], v[:, i], *weights, *step.rotations[i], k_pages, v_pages, ids, self.eps)
            for i, ids in enumerate(step.own_ids)
        ]
        out, _ = paged_attention(torch.cat(rotated, 1), k_pages, v_pages, step.page_ids, step.page_valid)
        step.attended.add(layer)
        return out.view(q.shape)

    def advance(self, frames: int) -> None:
        """See `Cache.advance`. Raises RuntimeError unless every layer has attended with this many frames."""
        layers = len(self.pool.by_layer)
        own, attended = ([], 0) if self._step is None else (self._step.own, len(self._step.attended))
        if len(own) != frames or attended != layers:
            expected = f"advance: expected {frames} frames after {layers} layers"
            raise RuntimeError(f"{expected}, got {len(own)} after {attended}")
        self._past |= dict(enumerate(own, start=self.next_frame))
        self._step = None
        self.next_frame += frames

    def fork(self, pool: PagePool | None = None) -> PagedBlockCache:
        """A cache that goes on from here on its own, bit for bit like this one.

        In the same pool it shares pages; to another `pool` they are copied. Raises RuntimeError in the middle of a
        block, PoolExhausted if too few pages are available.
        """
        if self._released or self._step is not None:
            raise RuntimeError("fork: expected a cache between two blocks, not a released one or one inside a block")
        pool = self.pool if pool is None else pool
        other = PagedBlockCache(pool, self.rope, self.tokens, self.blocks, eps=self.eps)
        other.next_frame = self.next_frame
        try:
            for frame, ids in self._past.items():
                if pool is self.pool:
                    pool.share(ids)
                    other._past[frame] = list(ids)
                else:
                    other._past[frame] = pool.allocate(len(ids))
                    pool.copy_pages(other._past[frame], self.pool, ids)
        except BaseException:
            other.release()
            raise
        return other

    def release(self) -> None:
        """Give all pages and the reservation back. A second call does nothing."""
        if self._released:
            return
        self._released = True
        for ids in (*self._past.values(), *([] if self._step is None else self._step.own)):
            self.pool.release(ids)
        self.pool.unreserve(self._reserved)

    def _plan(self, frames: int) -> _Step:
        """Forget what the block does not see, allocate its pages, and build the page list."""
        indices = range(self.next_frame, self.next_frame + frames)
        seen = set(self.blocks.seen(indices[-1]))
        for frame in [frame for frame in self._past if frame not in seen]:
            self.pool.release(self._past.pop(frame))
        device, per_frame = self.pool.k.device, pages_for(self.tokens)
        rotations = [(cos.to(device), sin.to(device)) for cos, sin in map(self.rope, indices)]
        taken = self.pool.allocate(frames * per_frame)
        own = [taken[start : start + per_frame] for start in range(0, len(taken), per_frame)]
        listed = [*self._past.values(), *own]
        page_ids = [page for ids in listed for page in ids]
        table = torch.tensor([page_ids, valid_slots(self.tokens) * len(listed)], dtype=torch.int32, device=device)
        own_ids = table[:1, len(page_ids) - len(taken) :].split(per_frame, 1)
        return _Step(own, list(own_ids), table[:1], table[1:], rotations)
