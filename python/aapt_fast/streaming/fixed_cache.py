# SPDX-License-Identifier: Apache-2.0
"""A paged cache whose steps all read the same tensors, so that a recording of one of them serves every later one.

What a frame sees is the same as in `PagedCache`. Only the page list always has its full length,

    text | sink | window | own frame

and what is not there yet has no valid slots. Between two steps the host writes the next list and rotations into the
tensors that the recording knows. As long as frame 1 is in the window, the sink's pages are spare ones that nobody
reads, so that its keys can be written in every step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from aapt_fast.ops import PAGE_SLOTS
from aapt_fast.streaming.paged_cache import PagedCache, StepPages, TextPages
from aapt_fast.streaming.pages import PagePool, pages_for, valid_slots


class FixedPagedCache(PagedCache):
    """`PagedCache` for steps that are recorded once and replayed: arguments and errors are the same.

    As there, the keys of frame 1 before rotation, [layers, slots of a frame, Hkv, D], are kept beside the pages.

    `prepare` writes the tables of the next frame. A recording runs the model several times, so `advance` changes
    nothing here; `finish` moves on to the next frame.
    """

    records_first: bool = True
    """Whether the step that runs keeps its keys as those of the sink. Decided when a step is recorded."""

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
        super().__init__(pool, rope, tokens, window, text, eps=eps)
        layers, _, _, heads, width = pool.k.shape
        self._frame_pages = pages_for(tokens)
        slots, device = self._frame_pages * PAGE_SLOTS, pool.k.device
        entries = (0 if text is None else len(text.ids)) + (window + 2) * self._frame_pages
        self._table = torch.zeros(2, entries, dtype=torch.int32, device=device)  # page ids, valid slots
        self._sink_ids = torch.zeros(self._frame_pages, dtype=torch.int64, device=device)
        angles = (2, 2, slots, width // 2)  # own, sink; cos, sin
        self._rotations = torch.zeros(angles, dtype=torch.float32, device=device)
        self._sink_keys = pool.k.new_zeros(layers, slots, heads, width)
        self._spare: list[int] = []  # instead of the sink, while it is in the window
        try:
            self._spare = pool.allocate(self._frame_pages)
        except BaseException:
            self.release()
            raise

    def is_first(self) -> bool:
        """Whether a recording is for frame 1: `records_first`."""
        return self.records_first

    def advance(self, frames: int) -> None:
        """See `FixedPagedCache`. Raises RuntimeError unless `frames` is 1."""
        if frames != 1:
            raise RuntimeError(f"advance: expected 1 frame, got {frames}")

    def finish(self) -> None:
        """End a step: its frame becomes a past one, and the next call of `prepare` is for the frame after it.

        Raises RuntimeError before `prepare`.
        """
        if self._step is not None:
            self._step.attended.update(range(len(self.pool.by_layer)))
        super().advance(1)
        self._drop_spare()

    def fork(self, pool: PagePool | None = None) -> FixedPagedCache:
        """See `PagedCache.fork`. The fork has tensors of its own: its steps need a recording of their own."""
        if self._step is not None:  # planned, for a recording, but not taken
            self.pool.release(self._step.own)
            self._step = None
        other = super().fork(pool)
        other._drop_spare()
        return other

    def release(self) -> None:
        """Give all pages and the reservation back. A second call does nothing."""
        super().release()
        self.pool.release(self._spare)
        self._spare = []

    def _plan(self) -> StepPages:
        rotations = [self.rope(max(index, 1)) for index in (self.next_frame, self.next_frame - self.window - 1)]
        for place, tables in zip(self._rotations, rotations, strict=True):
            for rotation, table in zip(place, tables, strict=True):
                rotation[: self.tokens].copy_(table)
        own = self._take_pages()
        sink = self._sink or self._spare
        self._sink_ids.copy_(torch.tensor(sink))
        self._table.copy_(torch.tensor([*zip(*self._entries(own), strict=True)], dtype=torch.int32))
        (cos, sin), sink_rotation = self._rotations[0, :, : self.tokens].unbind(), self._rotations[1].unbind()
        rotation, table, keys = (cos, sin), self._table, self._sink_keys
        return StepPages(own, table[:1], table[1:], rotation, self._sink_ids, sink_rotation, keys)

    def _entries(self, own: list[int]) -> list[tuple[int, int]]:
        """Page and valid slots of every entry of the list; a page without valid slots may be any."""
        counts = valid_slots(self.tokens)
        nothing = [(own[0], 0)] * self._frame_pages
        text = [] if self.text is None else list(zip(self.text.ids, self.text.valid, strict=True))
        sink = list(zip(self._sink, counts, strict=True)) if self._sink else nothing
        past = [entry for ids in self._past for entry in zip(ids, counts, strict=True)]
        missing = nothing * (self.window - len(self._past))
        return [*text, *sink, *past, *missing, *zip(own, counts, strict=True)]

    def _take_sink_keys(self, keys: Tensor | None) -> None:
        assert keys is not None and self._sink_keys is not None
        self._sink_keys.copy_(keys)

    def _drop_spare(self) -> None:
        """Once the sink has pages of its own, nobody needs the spare ones."""
        if self._sink:
            self.pool.release(self._spare)
            self._spare = []
