# SPDX-License-Identifier: Apache-2.0
"""The state of one session between two steps: the pages of its past, its decoder, and the newest frame."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from aapt_fast.errors import PoolExhausted
from aapt_fast.models.sampling import Prepared, Sampler
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.video_stream import VideoDecoder
from aapt_fast.ops.cache import KeysAndValues
from aapt_fast.streaming.cache import PagedCache
from aapt_fast.streaming.cache_row import CacheRow
from aapt_fast.streaming.graph import GraphMemory, RecordedDecoder, Recording
from aapt_fast.streaming.history import History
from aapt_fast.streaming.pages import PagePool, cache_pages, history_pages, pages_for, released_on_failure
from aapt_fast.streaming.past_steps import PastSteps
from aapt_fast.streaming.text_pages import TextPages


@dataclass(frozen=True)
class Start:
    """The inputs that a run starts from."""

    image: Tensor | None  # float32 [1, C, 1, h, w]
    control: Tensor | None  # of the image, float32 [entries * entry_channels, h, w]
    prompt: Tensor | None  # [1, L, text_width]
    seed: int


@dataclass
class Run:
    """State of a session, made by `open_run` and `fork`, and changed by each step."""

    start: Start
    rows: list[CacheRow]  # one per cache of the sampler
    context: Any  # from the sampler
    decoder: VideoDecoder
    first_frame: Tensor | None  # the image as the VAE shows it, uint8 [H, W, 3]
    frame: Tensor | None  # newest, float32 [1, C, n, h, w]
    control: Tensor | None  # of the newest step, float32 [entries * entry_channels, h, w]
    memory: GraphMemory | None  # of its recordings, if it is recorded
    history: History
    past: PastSteps | None  # of a run whose prompt can change
    steps: int = 0
    recordings: weakref.WeakSet[Recording] = field(default_factory=weakref.WeakSet)  # of steps that read its pages

    def fork(self, pool: PagePool) -> Run:
        """A run that continues from here on its own, bit for bit. Raises PoolExhausted if `pool` has too few pages."""
        other = copy.copy(self)
        other.recordings, other.history = weakref.WeakSet(), self.history.fork()
        other.past = None if self.past is None else self.past.fork()
        other.memory = None if self.memory is None else GraphMemory(self.memory.device)
        other.rows = _all_or_none(row.fork(pool) for row in self.rows)
        with released_on_failure(other):
            if isinstance(self.decoder, RecordedDecoder):
                other.decoder = self.decoder.clone(other.memory)
            else:
                other.decoder = self.decoder.clone()
        return other

    def remember(self) -> None:
        """Keep the state after a step, for `rewind`."""
        self.history.add(self.steps, self.frame, self.control, self.decoder)

    def change_prompt(self, prompt: Tensor | None, prepared: Prepared) -> None:
        """Go on under a `prompt` [1, L, text_width], which the sampler has `prepared`; the past stays as it is.

        `rewind` cannot go back behind it. Raises PoolExhausted, having changed nothing, if the pool has too few pages.
        """
        texts = list(zip(self.rows, prepared.text, strict=True))
        made: dict[int, TextPages] = {}
        try:
            for number, (row, text) in enumerate(texts):
                if text is not None and not row.has_room_for(text):
                    made[number] = TextPages(row.pool, text)
            for number, (row, text) in enumerate(texts):
                row.change_text(text, made.get(number))
        finally:
            for in_pages in made.values():
                in_pages.release()  # the row holds it
        self.start, self.context = replace(self.start, prompt=prompt), prepared.context
        self.history.forget()
        self.remember()

    def rewind(self, to_step: int, model: StreamModel, frames: int) -> None:
        """Go back to the state after step `to_step`; a step makes `frames` frames. `History.check` has let it pass."""
        for row in self.rows:
            row.rewind(row.next_frame - (self.steps - to_step) * frames)
        moment = self.history.rewind(to_step, self.decoder, partial(self.decode, model))
        self.steps, self.frame, self.control = moment.steps, moment.frame, moment.control
        if self.past is not None:
            self.past.rewind(to_step)

    def release(self) -> None:
        """Give back the pages, and the memory of all recordings that read them. A second call does nothing.

        A closed session keeps its run, for the newest frame; so the run lets go of everything else.
        """
        for row in self.rows:
            row.release()
        self.free_steps()
        self.rows, self.context, self.past = [], None, None

    def free_steps(self) -> None:
        """Give back the memory of all recordings of its steps."""
        for recording in list(self.recordings):
            recording.free()
        self.recordings.clear()

    def decode(self, model: StreamModel, frames: Tensor, first: bool) -> Tensor:
        """Decode the frames [1, C, n, h, w] of the next step, or of the `first`, to video, uint8 [F, H, W, 3].

        A frame that begins a video goes alone.
        """
        if not first or self.first_frame is not None or frames.shape[2] == 1:
            return model.decode(self.decoder, frames)
        parts = [frames[:, :, :1], frames[:, :, 1:]]
        return torch.cat([model.decode(self.decoder, part) for part in parts])


def open_run(
    model: StreamModel,
    sampler: Sampler,
    start: Start,
    pool_of: Callable[[int], PagePool],
    memory: GraphMemory | None,
    history: int,
) -> Run:
    """Begin a run: compute the prompt's keys, take pages, and prime the decoder with the image.

    `pool_of` gives the pool for a number of pages. With `memory` for recordings the decoder is recorded, if the run
    begins with an image. The run can go back by `history` steps.
    Raises PoolExhausted if the pool has too few pages, RuntimeError if recording fails; everything taken has been given
    back then.
    """
    decoder = model.vae.stream()
    first_frame = None if start.image is None else model.decode(decoder, start.image)[0]
    generator, rule = model.generator, sampler.rule(model.generator)
    rope, eps = generator.rope(*model.grid), generator.config.eps
    with model.autocast():
        prepared = sampler.prepare(generator, start.prompt)
    lengths = [0 if text is None else text[0][0].shape[1] for text in prepared.text]
    kept, cached = history * rule.frames, cache_pages(model.tokens, rule)
    pages = sum(cached + history_pages(model.tokens, rule, kept) + pages_for(length) for length in lengths)
    pool = pool_of(pages)
    if pages > pool.available:
        raise PoolExhausted(f"session: asked for {pages} pages, {pool.available} of {pool.pages} are available")

    def row(text: Sequence[KeysAndValues] | None) -> CacheRow:
        if text is None:
            return CacheRow(pool, rule, rope, model.tokens, eps=eps, history=kept)
        in_pages = TextPages(pool, text)
        try:
            return CacheRow(pool, rule, rope, model.tokens, in_pages, eps=eps, history=kept)
        finally:
            in_pages.release()  # the row holds it

    rows = _all_or_none(row(text) for text in prepared.text)
    moments = History(history, model.device)
    run = Run(start, rows, prepared.context, decoder, first_frame, start.image, start.control, memory, moments, None)
    with released_on_failure(run):
        if start.image is not None:
            sampler.remember(generator, start.image, run.context, [PagedCache([row]) for row in rows])
        if generator.config.text_width > 0:
            image_frames = rows[0].next_frame - 1
            run.past = PastSteps(rule, image_frames, history, {0: (start.image, start.control)})
        if memory is not None and first_frame is not None:
            run.decoder = RecordedDecoder(model, decoder, rule.frames, memory)
        run.remember()
    return run


def _all_or_none(rows: Iterable[CacheRow]) -> list[CacheRow]:
    """List the rows as they are made; if making one fails, release those before it."""
    made: list[CacheRow] = []
    try:
        for row in rows:
            made.append(row)
    except BaseException:
        for row in made:
            row.release()
        raise
    return made
