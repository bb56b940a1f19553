# SPDX-License-Identifier: Apache-2.0
"""The key-value cache of a stream in pages: a ledger per session, and one cache for the steps of B sessions.

A frame starts on a page, so the cache of a step is a list of pages, each with its number of valid slots:

    text | frames that the rule shows, oldest first | entries without valid slots | own frames

The list always has its full length, and is the same in every layer. It lies in tensors that stay where they are, so a
recorded step and an unrecorded one read the same. Frames that no later step sees give their pages back.

Keys of a frame are rotated when they are written. A sink frame whose position moves (`WindowRule`) is rotated again in
every step, from a copy of its keys before rotation; until it has left the window, that writes to spare pages, which
are in no list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aapt_fast.errors import require, require_shape
from aapt_fast.ops import PAGE_SLOTS, FrameRope, kv_write, normalise_and_rotate, paged_attention
from aapt_fast.ops.fused_attention import PackedRows
from aapt_fast.ops.paged_attention import packed_rows
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
from aapt_fast.streaming.uploads import to_device


@dataclass(frozen=True)
class RowPlan:
    """Pages of the next step of one row."""

    frames: int  # that the step makes
    listed: list[tuple[int, int]]  # page and valid slots: text and past frames
    own: list[list[int]]  # pages of each new frame
    moved: list[tuple[list[int], int]]  # per frame that moves: pages for its rotated keys, position
    moves: bool  # whether attention reads any of the latter


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


class PagedCache:
    """`ops.Cache` for the steps of B rows: one block of frames per call and row, inference only.

    Row b of a call is the next block of `rows[b]`, whatever its number. The rows belong to their sessions: nothing here
    needs to be released, and between two steps each may be used in another cache. Until `advance`, a layer may attend
    again, for example at another noise level: its keys and values replace the earlier ones.

    Args:
        rows: at least one; of one pool and rule, with as many tokens per frame, none of them twice.

    Raises:
        ValueError: rows that do not fit together.
    """

    def __init__(self, rows: Sequence[CacheRow]) -> None:
        require(len(rows) > 0, "rows", "at least one", "none")
        require(len({id(row) for row in rows}) == len(rows), "rows", "each of them once", "one of them twice")
        first = rows[0]
        for row in rows:
            require(row.pool is first.pool, "rows", "rows of one pool", "rows of several")
            require(row.tokens == first.tokens, "rows", f"{first.tokens} tokens per frame", row.tokens)
            require(row.rule == first.rule, "rows", f"one rule, {first.rule}", row.rule)
        self.rows, self.pool, self._tokens = list(rows), first.pool, first.tokens
        self.recording = False
        """True while a step is recorded: it runs as in the steady state, with frames past the sink."""
        self.moves_rows = True
        """True if `advance` moves the rows on to their next block; else `finish` does that, or `drop` ends the step."""
        device, rule, width = self.pool.k.device, first.rule, self.pool.k.shape[-1]
        frame_pages = pages_for(first.tokens)
        entries = max(row.entries for row in rows)
        self._table = torch.zeros(2, len(rows), entries, dtype=torch.int32, device=device)  # page ids, valid slots
        space = first.rope.space.to(device)  # the same in every step
        self._time_pairs = width // 2 - space.shape[-1]

        def rotations(*sizes: int) -> Tensor:
            """Cos and sin, float32 [2, *sizes, D / 2], of which only the temporal part is missing."""
            tables = torch.zeros(2, *sizes, width // 2, dtype=torch.float32, device=device)
            tables[..., : first.tokens, self._time_pairs :] = space.view(2, *[1] * (len(sizes) - 1), *space.shape[1:])
            return tables

        self._rotation = rotations(len(rows), rule.frames, first.tokens)
        moved = len(rows) * rule.moved
        self._moved_ids = torch.zeros(moved * frame_pages, dtype=torch.int64, device=device)
        self._moved_rotation = rotations(moved, frame_pages * PAGE_SLOTS)
        self._plans: list[RowPlan] = []  # that the tensors hold
        self._attended: set[int] = set()  # layers
        self._packed: PackedRows | None = None  # from the first layer of a step on

    def prepare(self, frames: int) -> None:
        """Plan the next `frames` frames of every row and write the tensors that `attend` reads.

        `attend` does it where it has not been done. Raises as `CacheRow.plan` does.
        """
        self.plan(frames)
        [inputs] = to_device([self.inputs()], self._table.device)
        self.write(inputs)

    def plan(self, frames: int) -> None:
        """Plan the next `frames` frames of every row: the first part of `prepare`. Raises as `CacheRow.plan` does."""
        self._plans = [row.plan(frames) for row in self.rows]
        self._frames, self._attended = frames, set()

    def inputs(self) -> list[Tensor]:
        """The numbers of the planned step, on the host: the second part of `prepare`.

        Page ids and valid slots, int32 [2, B, entries]; cos and sin of the new frames in time, float32
        [2, B n, pairs]; where frames move, their pages, int64 [frames * pages], and their cos and sin in time.
        """
        rope, tokens, entries = self.rows[0].rope, self._tokens, self._table.shape[2]
        table, counts = [], valid_slots(tokens)
        for plan in self._plans:
            own = [entry for ids in plan.own for entry in zip(ids, counts, strict=True)]
            nothing = [(own[0][0], 0)] * (entries - len(plan.listed) - len(own))
            table.append([*plan.listed, *nothing, *own])
        new = [row.next_frame + i for row in self.rows for i in range(self._frames)]
        inputs = [torch.tensor(table, dtype=torch.int32).permute(2, 0, 1), rope.time(new)]
        moved = [entry for plan in self._plans for entry in plan.moved]
        if moved:
            pages = torch.tensor([page for ids, _ in moved for page in ids])
            inputs += [pages, rope.time([position for _, position in moved])]
        return inputs

    def write(self, inputs: Sequence[Tensor]) -> None:
        """Write `inputs()` [...], on the device, to the tensors that `attend` reads: the last part of `prepare`."""
        table, time, *moved = inputs
        frames, pairs, tokens = self._frames, self._time_pairs, self._tokens
        self._table.copy_(table)
        self._rotation[:, :, :frames, :, :pairs] = time.view(2, -1, frames, 1, pairs)
        own_ids = self._table[0, :, -frames * pages_for(tokens) :].unflatten(1, (frames, -1))
        self._own = (*self._rotation[:, :, :frames].unbind(), own_ids)  # cos, sin, pages: [B, n, ...]
        if moved:
            ids, time = moved
            self._moved_ids.copy_(ids)
            self._moved_rotation[:, :, :tokens, :pairs] = time[:, :, None]

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor | None, k_weight: Tensor | None
    ) -> Tensor:
        """Write the keys and values of a layer to the pages and attend to all pages of the step, as `Cache.attend`.

        q, k, v and the result are [B, n, N, H or Hkv, D].

        Raises ValueError for another shape or dtype, PoolExhausted as `CacheRow.plan` does.
        """
        layers = len(self.pool.by_layer)
        require(0 <= layer < layers, "layer", f"0..{layers - 1}", layer)
        require_shape("q", q, len(self.rows), "n", self._tokens, "H", "D")
        frames = q.shape[1]
        require_shape("k", k, len(self.rows), frames, self._tokens, "Hkv", q.shape[-1])
        require_shape("v", v, *k.shape)
        if not self._plans:
            self.prepare(frames)
        require(frames == self._frames, "q", f"{self._frames} frames, as prepared", frames)
        k_pages, v_pages = self.pool.by_layer[layer]
        page_ids, page_valid = self._table.unbind()
        if not self._attended:
            self._packed = packed_rows(page_ids, page_valid, self.pool.pages)
        new_q, new_k, new_v, cos, sin, own_ids = (x.flatten(0, 1) for x in (q, k, v, *self._own))  # a frame is a row
        eps = self.rows[0].eps
        rotated = kv_write(new_q, new_k, new_v, q_weight, k_weight, cos, sin, k_pages, v_pages, own_ids, eps)
        self._move_sinks(layer, k, k_weight, k_pages)
        queries = rotated.view(len(q), -1, *q.shape[3:])
        out, _ = paged_attention(queries, k_pages, v_pages, page_ids, page_valid, packed=self._packed)
        self._attended.add(layer)
        return out.view(q.shape)

    def advance(self, frames: int) -> None:
        """End the step, as `Cache.advance`. Raises RuntimeError unless every layer has attended with so many frames."""
        layers, attended = len(self.pool.by_layer), len(self._attended)
        planned = self._frames if self._plans else 0
        if planned != frames or attended != layers:
            expected = f"advance: expected {frames} frames after {layers} layers"
            raise RuntimeError(f"{expected}, got {planned} after {attended}")
        self._attended, self._packed = set(), None  # a recording must not read what a warm-up has packed
        if self.moves_rows:
            self.finish()

    def finish(self) -> None:
        """Move every row on to its next block, where `advance` has not done it."""
        for row in self.rows:
            row.advance()
        self._plans = []

    def drop(self) -> None:
        """Take back a planned step that has not been finished, computed or not: its pages are free again."""
        for row in self.rows:
            row.drop()
        self._plans = []

    def _move_sinks(self, layer: int, k: Tensor, k_weight: Tensor | None, k_pages: Tensor) -> None:
        """Keep the unrotated keys of new sink frames, and write those of moving sink frames at their new position."""
        rule = self.rows[0].rule
        if not rule.moved:
            return
        if not self.recording:
            for row, keys in zip(self.rows, k, strict=True):
                for frame in range(row.next_frame, min(row.next_frame + len(keys) - 1, rule.moved) + 1):
                    start = (frame - 1) * pages_for(self._tokens) * PAGE_SLOTS
                    kept = normalise_and_rotate(keys[frame - row.next_frame], k_weight, None, None, row.eps)
                    row.unrotated[layer, start : start + self._tokens] = kept
        if self.recording or any(plan.moves for plan in self._plans):
            kept = [row.unrotated[layer] for row in self.rows]
            cos, sin = self._moved_rotation.flatten(1, 2)
            keys = normalise_and_rotate(kept[0] if len(kept) == 1 else torch.cat(kept), None, cos, sin)
            k_pages.index_copy_(0, self._moved_ids, keys.unflatten(0, (-1, PAGE_SLOTS)))
