# SPDX-License-Identifier: Apache-2.0
"""The key-value cache of one session, in pages. What a frame sees is defined in `aapt_fast.ops.cache`.

A frame starts on a page, so the cache of a step is a list of pages, each with its number of valid slots:

    text | sink | window | own frame

It is the same list in every layer and is built once per step. A frame that leaves the window gives its pages back,
except frame 1, which becomes the sink: its pages are rewritten each step with the keys at their saturated distance.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from aapt_fast.errors import require, require_shape
from aapt_fast.ops import PAGE_SLOTS, kv_write, normalise_and_rotate, paged_attention
from aapt_fast.ops.cache import KeysAndValues
from aapt_fast.streaming.pages import PagePool, pages_for, valid_slots

AnyCache = TypeVar("AnyCache", bound="PagedCache")


def pages_needed(tokens: int, window: int, text_length: int = 0) -> int:
    """The most pages that a cache and its text hold at a time.

    Args:
        tokens: per frame.
        window: past frames kept, besides the sink.
        text_length: tokens of the prompt.
    """
    sink_and_own = 2
    return pages_for(text_length) + (window + sink_and_own) * pages_for(tokens)


class TextPages:
    """Keys and values of a prompt at one timestep, written once, for any number of caches in one pool.

    The pages are given back when the last holder has called `release`; who makes the object is its first holder.

    Args:
        pool: where to write.
        keys_values: per layer keys and values [1, L, Hkv, D], normalised, in the dtype of the pool.

    Raises:
        ValueError: not one entry per layer, or another shape or dtype.
        PoolExhausted: too few pages; the pool stays as it was.
    """

    def __init__(self, pool: PagePool, keys_values: Sequence[KeysAndValues]) -> None:
        layers = len(pool.by_layer)
        require(len(keys_values) == layers, "keys_values", f"{layers} entries, one per layer", len(keys_values))
        length = keys_values[0][0].shape[1]
        require(length >= 1, "keys_values", "at least 1 token", length)
        pool.reserve(pages_for(length))
        self.pool, self.length, self.ids, self._holders = pool, length, pool.allocate(pages_for(length)), 1
        try:
            self._write(keys_values)
        except BaseException:
            self.release()
            raise

    @property
    def valid(self) -> list[int]:
        """Valid slots of each page."""
        return valid_slots(self.length)

    def share(self) -> TextPages:
        """This object, with one more holder."""
        require(self._holders > 0, "text", "pages that are held", "released ones")
        self._holders += 1
        return self

    def copy_to(self, pool: PagePool) -> TextPages:
        """The same text in pages of another pool; raises PoolExhausted if that has too few."""
        index = torch.tensor(self.ids, device=self.pool.k.device)

        def tokens(pages: Tensor) -> Tensor:
            return pages.index_select(0, index).flatten(0, 1)[None, : self.length]

        return TextPages(pool, [(tokens(k_pages), tokens(v_pages)) for k_pages, v_pages in self.pool.by_layer])

    def release(self) -> None:
        """Take one holder away. Raises ValueError if there is none."""
        require(self._holders > 0, "text", "pages that are held", "released ones")
        self._holders -= 1
        if self._holders == 0:
            self.pool.release(self.ids)
            self.pool.unreserve(len(self.ids))

    def _write(self, keys_values: Sequence[KeysAndValues]) -> None:
        ids = torch.tensor([self.ids], dtype=torch.int32, device=self.pool.k.device)
        for (k_pages, v_pages), (keys, values) in zip(self.pool.by_layer, keys_values, strict=True):
            require_shape("keys", keys, 1, self.length, *k_pages.shape[2:])
            kv_write(keys, keys, values, None, None, None, None, k_pages, v_pages, ids)


@dataclass
class StepPages:
    """What all layers of one step share."""

    own: list[int]  # pages of the frame
    page_ids: Tensor  # int32 [1, M]: text, sink, window, own
    page_valid: Tensor  # int32 [1, M]
    rotation: tuple[Tensor, Tensor]  # cos, sin, float32 [N, D / 2], of the frame
    sink_ids: Tensor  # int64 [pages of the sink], empty while frame 1 is in the window
    sink_rotation: tuple[Tensor, Tensor] | None  # cos, sin, float32 [slots of a frame, D / 2]
    sink_keys: Tensor | None  # [layers, slots of a frame, Hkv, D], normalised, not rotated
    attended: set[int] = field(default_factory=set)  # layers


class PagedCache:
    """`ops.Cache` of one session: batch 1, one frame per call, inference only.

    Besides pages it holds the sink's keys before rotation, [layers, slots of a frame, Hkv, D] in the pool's dtype.
    An interrupted step can be repeated: until `advance`, a layer may attend again.

    Args:
        pool: where keys and values go. `pages_needed` pages are reserved until `release`, without those of the text.
        rope: gives (cos, sin), float32 [N, D / 2] each, for a frame index; for example a `FrameRope`.
        tokens: N, tokens per frame.
        window: past frames kept, besides the sink.
        text: prompt in pages of the same pool; the cache becomes one more holder.
        eps: of the RMSNorm.

    Raises:
        ValueError: tokens < 1, window < 0, or text in another pool.
        PoolExhausted: too few pages are available; the pool stays as it was.
    """

    def __init__(
        self,
        pool: PagePool,
        rope: Callable[[int], tuple[Tensor, Tensor]],
        tokens: int,
        window: int,
        text: TextPages | None = None,
        *,
        eps: float = 1e-6,
    ) -> None:
        require(tokens >= 1, "tokens", "at least 1 per frame", tokens)
        require(window >= 0, "window", "at least 0 frames", window)
        require(text is None or text.pool is pool, "text", "pages of the cache's pool", "pages of another one")
        self._reserved = pages_needed(tokens, window)
        pool.reserve(self._reserved)
        self.pool, self.rope, self.tokens, self.window, self.eps = pool, rope, tokens, window, eps
        self.text = None if text is None else text.share()
        self.next_frame = 1
        self._past: deque[list[int]] = deque()  # pages of the frames in the window, oldest first
        self._sink: list[int] = []  # pages of frame 1 once it has left the window
        self._sink_keys: Tensor | None = None  # [layers, slots of a frame, Hkv, D], normalised, not rotated
        self._step: StepPages | None = None  # between prepare and advance
        self._released = False

    def prepare(self) -> StepPages:
        """Take the pages of the next frame; `attend` does it where it has not been done.

        Raises PoolExhausted, having changed nothing, if somebody without a reservation has taken the pages.
        """
        if self._released:
            raise RuntimeError("cache: it has been released")
        if self._step is None:
            self._step = self._plan()
        return self._step

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor | None, k_weight: Tensor | None
    ) -> Tensor:
        """See `Cache.attend`; q, k, v and the result are [1, 1, N, H or Hkv, D].

        Raises ValueError for another shape or dtype, PoolExhausted as `prepare` does.
        """
        require(0 <= layer < len(self.pool.by_layer), "layer", f"0..{len(self.pool.by_layer) - 1}", layer)
        require_shape("q", q, 1, 1, self.tokens, "H", "D")
        step, (k_pages, v_pages) = self.prepare(), self.pool.by_layer[layer]
        own_ids = step.page_ids[:, -len(step.own) :]
        rotated_q = kv_write(q[0], k[0], v[0], q_weight, k_weight, *step.rotation, k_pages, v_pages, own_ids, self.eps)
        if self.is_first():
            self.keep_sink_keys(layer, k[0, 0], k_weight)
        if step.sink_rotation is not None:
            assert step.sink_keys is not None
            keys = normalise_and_rotate(step.sink_keys[layer], None, *step.sink_rotation)
            k_pages.index_copy_(0, step.sink_ids, keys.unflatten(0, (-1, PAGE_SLOTS)))
        out, _ = paged_attention(rotated_q, k_pages, v_pages, step.page_ids, step.page_valid)
        step.attended.add(layer)
        return out[None]

    def is_first(self) -> bool:
        """Whether the frame that is being attended is the one that becomes the sink."""
        return self.next_frame == 1

    def keep_sink_keys(self, layer: int, k: Tensor, k_weight: Tensor | None) -> None:
        """Remember the keys k [N, Hkv, D] of frame 1 in one layer: normalised, not rotated."""
        if self._sink_keys is None:
            slots = pages_for(self.tokens) * PAGE_SLOTS
            self._sink_keys = k.new_zeros(len(self.pool.by_layer), slots, *k.shape[1:])
        self._sink_keys[layer, : self.tokens] = normalise_and_rotate(k, k_weight, None, None, self.eps)

    def advance(self, frames: int) -> None:
        """See `Cache.advance`. Raises RuntimeError unless `frames` is 1 and every layer has attended."""
        layers = len(self.pool.by_layer)
        attended = 0 if self._step is None else len(self._step.attended)
        if self._step is None or frames != 1 or attended != layers:
            raise RuntimeError(f"advance: expected 1 frame after {layers} layers, got {frames} after {attended}")
        self._past.append(self._step.own)
        self._step = None
        self.next_frame += 1
        if len(self._past) > self.window:
            oldest = self._past.popleft()
            if self._sink:
                self.pool.release(oldest)
            else:
                self._sink = oldest  # frame 1

    def fork(self: AnyCache, pool: PagePool | None = None) -> AnyCache:
        """A cache that goes on from here on its own, bit for bit like this one.

        In the same pool it shares pages until one of the two would write to them; to another `pool` they are copied.
        Raises RuntimeError in the middle of a step, PoolExhausted if too few pages are available.
        """
        if self._released or self._step is not None:
            raise RuntimeError("fork: expected a cache between two steps, not a released one or one inside a step")
        pool = self.pool if pool is None else pool
        text = self.text.copy_to(pool) if self.text is not None and pool is not self.pool else self.text
        try:
            other = type(self)(pool, self.rope, self.tokens, self.window, text, eps=self.eps)
        finally:
            if text is not None and text is not self.text:
                text.release()
        other.next_frame = self.next_frame
        try:
            other._take_sink_keys(self._sink_keys)
            for ids in self._past:
                other._past.append(self._pages_for_fork(ids, pool))
            other._sink = self._pages_for_fork(self._sink, pool)
        except BaseException:
            other.release()
            raise
        return other

    def release(self) -> None:
        """Give all pages and the reservation back. A second call does nothing."""
        if self._released:
            return
        self._released = True
        for ids in (*self._past, self._sink, [] if self._step is None else self._step.own):
            self.pool.release(ids)
        self.pool.unreserve(self._reserved)
        if self.text is not None:
            self.text.release()
        self._sink_keys = None

    def _plan(self) -> StepPages:
        """Allocate the pages of the next frame, and of the sink if others hold it too; build the page list."""
        device = self.pool.k.device
        cos, sin = (table.to(device) for table in self.rope(self.next_frame))
        sink_rotation = self._sink_rotation()
        own = self._take_pages()
        text_ids, text_valid = (self.text.ids, self.text.valid) if self.text is not None else ([], [])
        frames = [ids for ids in (self._sink, *self._past, own) if ids]
        page_ids = text_ids + [page for ids in frames for page in ids]
        page_valid = text_valid + valid_slots(self.tokens) * len(frames)
        table = torch.tensor([page_ids, page_valid], dtype=torch.int32, device=device)
        sink_ids = table[0, len(text_ids) : len(text_ids) + len(self._sink)].long()
        return StepPages(own, table[:1], table[1:], (cos, sin), sink_ids, sink_rotation, self._sink_keys)

    def _take_pages(self) -> list[int]:
        """Pages for the next frame; the sink gets some of its own if others hold it too."""
        frame_pages = pages_for(self.tokens)
        sink_is_shared = bool(self._sink) and self.pool.is_shared(self._sink[0])
        taken = self.pool.allocate(2 * frame_pages if sink_is_shared else frame_pages)
        own, copies = taken[:frame_pages], taken[frame_pages:]
        if sink_is_shared:
            self.pool.copy_pages(copies, self.pool, self._sink)
            self.pool.release(self._sink)
            self._sink = copies
        return own

    def _sink_rotation(self) -> tuple[Tensor, Tensor] | None:
        """cos, sin of the sink for the next frame, padded to whole pages; None while frame 1 is in the window."""
        if not self._sink:
            return None
        unused = pages_for(self.tokens) * PAGE_SLOTS - self.tokens
        cos, sin = (table.to(self.pool.k.device) for table in self.rope(self.next_frame - self.window - 1))
        return pad(cos, (0, 0, 0, unused)), pad(sin, (0, 0, 0, unused))

    def _take_sink_keys(self, keys: Tensor | None) -> None:
        """Those of the cache this one is forked from; nobody writes to them any more."""
        self._sink_keys = keys

    def _pages_for_fork(self, ids: list[int], pool: PagePool) -> list[int]:
        if pool is self.pool:
            pool.share(ids)
            return list(ids)
        copies = pool.allocate(len(ids))
        pool.copy_pages(copies, self.pool, ids)
        return copies
