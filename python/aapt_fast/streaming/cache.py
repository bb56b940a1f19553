# SPDX-License-Identifier: Apache-2.0
"""The key-value cache in pages for the steps of B sessions. Each session has a ledger of its own, a `CacheRow`.

A frame starts on a page, so the cache of a step is a list of pages, each with its number of valid slots:

    text | frames that the rule shows, oldest first | entries without valid slots | own frames

The list always has its full length, and is the same in every layer. It lies in tensors that stay where they are, so a
recorded step and an unrecorded one read the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aapt_fast.errors import require, require_shape
from aapt_fast.ops import PAGE_SLOTS, kv_write, normalise_and_rotate, paged_attention
from aapt_fast.ops.fused_attention import PackedRows
from aapt_fast.ops.paged_attention import packed_rows
from aapt_fast.streaming.cache_row import CacheRow, RowPlan
from aapt_fast.streaming.pages import pages_for, valid_slots
from aapt_fast.streaming.uploads import to_device


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
