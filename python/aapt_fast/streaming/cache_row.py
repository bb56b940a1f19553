# SPDX-License-Identifier: Apache-2.0
"""The pages of one cache of one session: which frames hold which, in a step, after it, and on the way back.

Frames that no later step sees give their pages back. Keys of a frame are rotated when they are written. A sink frame
whose position moves (`WindowRule`) is rotated again in every step, from a copy of its keys before rotation; until it
has left the window, that writes to spare pages, which are in no list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aapt_fast.errors import require, require_shape
from aapt_fast.ops import PAGE_SLOTS, FrameRope
from aapt_fast.ops.cache import KeysAndValues
from aapt_fast.ops.window import WindowRule
from aapt_fast.streaming.pages import (
    PagePool,
    cache_pages,
    history_pages,
    pages_for,
    released_on_failure,
    valid_slots,
)
from aapt_fast.streaming.text_pages import TextPages


@dataclass(frozen=True)
class RowPlan:
    """Pages of the next step of one row."""

    frames: int  # that the step makes
    listed: list[tuple[int, int]]  # page and valid slots: text and past frames
    own: list[list[int]]  # pages of each new frame
    moved: list[tuple[list[int], int]]  # per frame that moves: pages for its rotated keys, position
    moves: bool  # whether attention reads any of the latter


@dataclass(frozen=True)
class RowState:
    """Contents of a row between two steps, on the host."""

    next_frame: int
    frames: tuple[int, ...]
    """Past frames, oldest first."""
    k: Tensor
    """Keys [layers, pages of these frames, 64, Hkv, D]."""
    v: Tensor
    """Values, likewise."""
    unrotated: Tensor
    """Keys of frames that move, [layers, slots, Hkv, D]."""


class CacheRow:
    """The pages of one cache of one session, by frame.

    Besides pages it holds the keys of frames that move, [layers, slots of those frames, Hkv, D], normalised and not
    rotated.

    Args:
        pool: home of keys and values. `cache_pages` pages are reserved until `release`, without those of the text.
        rule: frames that a step sees.
        rope: rotary positions of a frame's tokens.
        tokens: N, tokens per frame.
        text: prompt in pages of the same pool; the row becomes one more holder.
        eps: of the RMSNorm.
        history: last frames that `rewind` can undo. Pages that their steps saw are kept so much longer: `history_pages`
            more are reserved.
        unrotated: such keys of a row with the same first frames, which this row shares; None to make its own.

    Raises:
        ValueError: tokens < 1, history < 0, a rule without a window, or text in another pool.
        PoolExhausted: too few pages are available; the pool stays as it was.
    """

    def __init__(
        self,
        pool: PagePool,
        rule: WindowRule,
        rope: FrameRope,
        tokens: int,
        text: TextPages | None = None,
        *,
        eps: float = 1e-6,
        history: int = 0,
        unrotated: Tensor | None = None,
    ) -> None:
        require(tokens >= 1, "tokens", "at least 1 per frame", tokens)
        require(history >= 0, "history", "0 frames or more", history)
        require(text is None or text.pool is pool, "text", "pages of the cache's pool", "pages of another one")
        self._listed = cache_pages(tokens, rule)
        self._reserved = self._listed + history_pages(tokens, rule, history)
        pool.reserve(self._reserved)
        self.pool, self.rule, self.rope, self.tokens, self.eps = pool, rule, rope, tokens, eps
        self.history, self._floor = history, 1  # the earliest next frame that `rewind` takes
        self.text = None if text is None else text.share()
        self.next_frame = 1
        self._past: dict[int, list[int]] = {}  # pages by frame, oldest first
        self._spare: dict[int, list[int]] = {}  # per frame that moves, while it has not left the window
        self._unmoved: dict[int, list[int]] = {}  # per frame that moves, its pages at its own position, for `rewind`
        self._plan: RowPlan | None = None  # of the step between `plan` and `advance`
        self._released = False
        layers, _, _, heads, width = pool.k.shape
        slots = rule.moved * pages_for(tokens) * PAGE_SLOTS
        self.unrotated = pool.k.new_zeros(layers, slots, heads, width) if unrotated is None else unrotated
        with released_on_failure(self):
            for frame in range(1, rule.moved + 1):
                self._spare[frame] = pool.allocate(pages_for(tokens))

    @property
    def entries(self) -> int:
        """Length of the page list of a step."""
        return self._listed + (0 if self.text is None else len(self.text.ids))

    def plan(self, frames: int) -> RowPlan:
        """Take the pages of the next `frames` frames; a second call before `advance` gives the same plan.

        Raises RuntimeError after `release`, ValueError for more frames than a block has or another number than has
        been planned already, PoolExhausted if pages of the pool were taken without a reservation: then nothing has
        changed, except that frames which no later step sees are forgotten.
        """
        if self._released:
            raise RuntimeError("cache: it has been released")
        require(1 <= frames <= self.rule.frames, "frames", f"1..{self.rule.frames}, a block", frames)
        if self._plan is None:
            self._plan = self._make_plan(frames)
        require(self._plan.frames == frames, "frames", f"{self._plan.frames}, as planned", frames)
        return self._plan

    def advance(self) -> None:
        """End the planned step: its frames become past frames."""
        assert self._plan is not None
        self._past |= dict(enumerate(self._plan.own, start=self.next_frame))
        self.next_frame += self._plan.frames
        self._plan = None
        self._floor = max(self._floor, self.next_frame - self.history)
        self._forget(self.next_frame)  # by the smallest block that can come next

    def drop(self) -> None:
        """Take the planned step back: its frames never were. Does nothing without one."""
        if self._plan is not None:
            for ids in self._plan.own:
                self.pool.release(ids)
            self._plan = None

    def rewind(self, next_frame: int) -> None:
        """Go back to the state in which `next_frame` was next; a planned step is taken back.

        Raises ValueError, having changed nothing, for one that lies ahead, or more than `history` frames before the
        latest one so far.
        """
        possible = self._floor <= next_frame <= self.next_frame
        require(possible, "next_frame", f"{self._floor}..{self.next_frame}", next_frame)
        self.drop()
        for frame in [frame for frame in self._past if frame >= next_frame]:
            self.pool.release(self._past.pop(frame))
        self.next_frame = next_frame
        moved_now = self._outside(next_frame - 1)  # of the step before
        for frame in range(1, self.rule.moved + 1):
            if frame not in moved_now:
                if (unmoved := self._unmoved.pop(frame, None)) is not None:
                    self.pool.release(self._past.pop(frame, []))
                    if frame < next_frame:
                        self._past[frame] = unmoved
                    else:
                        self.pool.release(unmoved)
                if frame not in self._spare:
                    self._spare[frame] = self.pool.allocate(pages_for(self.tokens))
        self._past = dict(sorted(self._past.items()))

    def begin_again(self) -> None:
        """Forget every frame, so that frame 1 is next. The text stays."""
        self.drop()
        for ids in (*self._past.values(), *self._spare.values(), *self._unmoved.values()):
            self.pool.release(ids)
        self._past, self._spare, self._unmoved = {}, {}, {}
        for frame in range(1, self.rule.moved + 1):
            self._spare[frame] = self.pool.allocate(pages_for(self.tokens))
        self.unrotated = torch.zeros_like(self.unrotated)  # forks may share the former one
        self.next_frame = self._floor = 1

    def skip_to(self, next_frame: int) -> None:
        """Go on with `next_frame`, which no frame in between is seen from; `rewind` cannot go back behind it.

        Raises ValueError, having changed nothing, for a frame that is past.
        """
        require(next_frame >= self.next_frame, "next_frame", f"at least {self.next_frame}", next_frame)
        self.drop()
        self.next_frame = self._floor = next_frame

    def has_room_for(self, text: Sequence[KeysAndValues]) -> bool:
        """True if another `text`, per layer [1, L, Hkv, D], can take the pages of this row's."""
        return self.text is not None and self.text.takes(text[0][0].shape[1])

    def change_text(self, text: Sequence[KeysAndValues] | None, in_pages: TextPages | None) -> None:
        """List other `text`, per layer [1, L, Hkv, D], from the next step on; the past stays as it is.

        It is in the pages `in_pages`, of which the row becomes one more holder; else it takes those of the former text,
        which `has_room_for` it.
        """
        self.drop()
        if text is not None and in_pages is None:
            assert self.text is not None
            self.text.rewrite(text)
            return
        before, self.text = self.text, None if in_pages is None else in_pages.share()
        if before is not None:
            before.release()

    def state(self) -> RowState:
        """A copy of everything that later steps read, without frames that are there for `rewind` alone."""
        seen = {frame for frame, _ in self.rule.seen(self.next_frame)}  # by the smallest block that can come next
        past = {frame: pages for frame, pages in self._past.items() if frame in seen}
        ids = torch.tensor([page for pages in past.values() for page in pages], dtype=torch.int64)
        ids = ids.to(self.pool.k.device)
        k, v, unrotated = (
            tensor.to("cpu", copy=True)
            for tensor in (self.pool.k.index_select(1, ids), self.pool.v.index_select(1, ids), self.unrotated)
        )
        return RowState(self.next_frame, tuple(past), k, v, unrotated)

    def restore(self, state: RowState) -> None:
        """Go on from the `state` of a row with the same rule, tokens and text; `rewind` cannot go back behind it.

        Raises ValueError, having changed nothing, for another number of pages than the frames of `state` have.
        """
        per_frame = pages_for(self.tokens)
        expected = (self.pool.k.shape[0], len(state.frames) * per_frame, *self.pool.k.shape[2:])
        for name, tensor, shape in (
            ("k", state.k, expected),
            ("v", state.v, expected),
            ("unrotated", state.unrotated, self.unrotated.shape),
        ):
            require_shape(name, tensor, *shape)
        self.drop()
        for ids in (*self._past.values(), *self._spare.values(), *self._unmoved.values()):
            self.pool.release(ids)
        self._past, self._spare, self._unmoved = {}, {}, {}
        self.next_frame = self._floor = state.next_frame
        for frame in range(1, self.rule.moved + 1):
            if frame not in self._outside(self.next_frame - 1):
                self._spare[frame] = self.pool.allocate(per_frame)
        for place, frame in enumerate(state.frames):
            self._past[frame] = self.pool.allocate(per_frame)
            ids = torch.tensor(self._past[frame], device=self.pool.k.device)
            pages = slice(place * per_frame, (place + 1) * per_frame)
            self.pool.k[:, ids] = state.k[:, pages].to(self.pool.k.device)
            self.pool.v[:, ids] = state.v[:, pages].to(self.pool.k.device)
        self.unrotated.copy_(state.unrotated)

    def fork(self, pool: PagePool | None = None) -> CacheRow:
        """A row that continues from here on its own, bit for bit like this one.

        In the same pool it shares pages until one of the two would write to them; to another `pool` they are copied.
        A step that is planned already stays with this row. Raises RuntimeError after `release`, PoolExhausted if too
        few pages are available.
        """
        if self._released:
            raise RuntimeError("cache: it has been released")
        pool = self.pool if pool is None else pool
        text = self.text.copy_to(pool) if self.text is not None and pool is not self.pool else self.text
        # whether no later step of either row writes to the keys that move
        complete = self._floor > self.rule.moved
        kept = self.unrotated if complete else self.unrotated.clone()
        options: dict[str, Any] = {"eps": self.eps, "history": self.history, "unrotated": kept}
        try:
            other = CacheRow(pool, self.rule, self.rope, self.tokens, text, **options)
        finally:
            if text is not None and text is not self.text:
                text.release()
        other.next_frame, other._floor = self.next_frame, self._floor
        with released_on_failure(other):
            for frame in other._spare.keys() - self._spare.keys():
                pool.release(other._spare.pop(frame))
            for theirs, own in ((self._past, other._past), (self._unmoved, other._unmoved)):
                for frame, ids in theirs.items():
                    own[frame] = self._lend(ids, pool)
        return other

    def _lend(self, ids: list[int], pool: PagePool) -> list[int]:
        """The contents of pages `ids` for another row: the same pages, or copies in another `pool`."""
        if pool is self.pool:
            pool.share(ids)
            return list(ids)
        copies = pool.allocate(len(ids))
        pool.copy_pages(copies, self.pool, ids)
        return copies

    def release(self) -> None:
        """Give all pages and the reservation back. A second call does nothing."""
        if self._released:
            return
        self._released = True
        self.drop()
        for ids in (*self._past.values(), *self._spare.values(), *self._unmoved.values()):
            self.pool.release(ids)
        self.pool.unreserve(self._reserved)
        if self.text is not None:
            self.text.release()

    def _forget(self, newest: int) -> None:
        """Give back frames that neither a step ending in `newest` sees nor one after a `rewind`."""
        oldest = max(newest - self.history, min(newest, self.rule.frames))  # of the steps after the longest rewind
        needed = {frame for frame, _ in self.rule.seen(oldest)}
        for frame in [frame for frame in self._past if frame not in needed and frame <= oldest]:
            self.pool.release(self._past.pop(frame))
        for frame in [frame for frame in self._unmoved if frame in self._outside(oldest - 1)]:
            self.pool.release(self._unmoved.pop(frame))

    def _outside(self, newest: int) -> range:
        """Frames that move and have left the window of a step ending in `newest`."""
        return range(1, min(self.rule.moved, self.rule.window_start(newest) - 1) + 1)

    def _make_plan(self, frames: int) -> RowPlan:
        newest, per_frame = self.next_frame + frames - 1, pages_for(self.tokens)
        self._forget(newest)
        seen, outside = dict(self.rule.seen(newest)), self._outside(newest)
        for frame in [frame for frame in self._spare if frame in outside]:
            self.pool.release(self._spare.pop(frame))
            if self.history:
                self._unmoved[frame] = self._lend(self._past[frame], self.pool)
        shared = [frame for frame in outside if self.pool.is_shared(self._past[frame][0])]
        taken = self.pool.allocate((frames + len(shared)) * per_frame)
        groups = [taken[start : start + per_frame] for start in range(0, len(taken), per_frame)]
        for frame, copies in zip(shared, groups[frames:], strict=True):  # about to be written to
            self.pool.copy_pages(copies, self.pool, self._past[frame])
            self.pool.release(self._past[frame])
            self._past[frame] = copies
        counts = valid_slots(self.tokens)
        listed = [] if self.text is None else list(zip(self.text.ids, self.text.valid, strict=True))
        past = [ids for frame, ids in self._past.items() if frame in seen]
        listed += [entry for ids in past for entry in zip(ids, counts, strict=True)]
        moved = [
            (self._past[frame], seen[frame]) if frame in outside else (self._spare[frame], frame)
            for frame in range(1, self.rule.moved + 1)
        ]
        return RowPlan(frames, listed, groups[:frames], moved, bool(outside))
