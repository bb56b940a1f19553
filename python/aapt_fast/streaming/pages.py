# SPDX-License-Identifier: Apache-2.0
"""The memory of all sessions on a device: pages of 64 slots, counted by holders.

There are two ledgers. Each page counts its holders and is free again without any: a fork holds the pages of its
origin instead of copying them. Each session reserves the most pages that it will ever hold. As long as it holds no
more than that, it finds a free page whenever it allocates one, because

    pages in use <= holds <= reserved <= pages

A page that one of several holders replaces by a copy keeps the first two sides equal at worst, so a reservation need
not include that copy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch

from aapt_fast.errors import PoolExhausted, require, require_integer, require_type
from aapt_fast.limits import in_units, memory_left
from aapt_fast.models.protocols import VideoGenerator
from aapt_fast.models.sampling import Sampler, require_sampler
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.not_copied import NotCopied
from aapt_fast.ops._checks import PAGE_DTYPES, PAGE_SLOTS
from aapt_fast.ops.window import WindowRule

LARGER = "PagePool.for_sessions(model, sessions) makes one for so many sessions at a time, and a fork is a session"


def pages_for(tokens: int) -> int:
    """Pages that `tokens` tokens fill when they start on a page."""
    return -(-tokens // PAGE_SLOTS)


def valid_slots(tokens: int) -> list[int]:
    """Valid slots of each page of `tokens` tokens that start on a page: full ones, then the rest."""
    full, rest = divmod(tokens, PAGE_SLOTS)
    return [PAGE_SLOTS] * full + ([rest] if rest else [])


def session_pages(
    generator: VideoGenerator,
    grid: tuple[int, int],
    sampler: Sampler | None = None,
    text_length: int = 0,
    history: int = 0,
) -> int:
    """Pages that a session reserves at latent height and width `grid`, one cache per cache of the sampler.

    `sampler` None stands for the generator's own choice. `text_length` counts where frames attend to the prompt through
    the cache, `history` are the steps that it can go back by. Raises TypeError for another type, ValueError for a
    negative number or a rule without a window: a stream would not fit any memory.
    """
    if sampler is None:
        sampler = generator.default_sampler()
    require_sampler(sampler)
    require_type("text_length", text_length, int)
    require(text_length >= 0, "text_length", "at least 0 tokens", text_length)
    require_integer("history", history)
    require(history >= 0, "history", "0 steps or more", history)
    text = pages_for(text_length) if generator.text_in_pages else 0
    tokens, rule = generator.tokens(grid), sampler.rule(generator)
    return sampler.caches * (cache_pages(tokens, rule) + history_pages(tokens, rule, history * rule.frames) + text)


def cache_pages(tokens: int, rule: WindowRule) -> int:
    """Most pages that one cache holds at a time, without those of its text; `tokens` per frame.

    Raises ValueError for a rule without a window: a stream would not fit any memory.
    """
    example = f"sampler=FewStepSampler(window=WindowRule(frames={rule.frames}, window=18, sink={rule.sink}))"
    expected = f"a number of past frames, as a stream has no end, for example {example}"
    require(rule.capacity is not None, "window", expected, "None (local_attn_size -1 in a configuration of Wan)")
    assert rule.capacity is not None
    return rule.capacity * pages_for(tokens)


def history_pages(tokens: int, rule: WindowRule, history: int) -> int:
    """Most pages that one cache holds more to be able to go back by `history` frames; `tokens` per frame."""
    return (history + (rule.moved if history else 0)) * pages_for(tokens)


def pool_bytes(layers: int, pages: int, heads: int, head_dim: int, dtype: torch.dtype = torch.float32) -> int:
    """Bytes of the keys and values of a `PagePool` with these arguments, without allocating anything."""
    return 2 * layers * pages * PAGE_SLOTS * heads * head_dim * dtype.itemsize


class Holder(Protocol):
    """An object that holds pages."""

    def release(self) -> None:
        """Give the pages back."""


@contextmanager
def released_on_failure(holder: Holder) -> Iterator[None]:
    """Release `holder` if the `with` block fails."""
    try:
        yield
    except BaseException:
        holder.release()
        raise


class PagePool(NotCopied):
    """Keys and values in pages, allocated once. Not safe to use from several threads at a time.

    `k` and `v` are [layers, pages, 64, heads, head_dim], zero at first.

    Args:
        layers: layers of the model; a page has slots in each of them.
        pages: number of pages.
        heads: key and value heads.
        head_dim: width of a head.
        dtype: float32, bfloat16 or float16.
        device: where the pages live.

    Raises:
        TypeError: a size that is no int.
        ValueError: a size below 1, or another dtype.
        PoolExhausted: the device has less memory left than that; nothing has been allocated.
    """

    no_copy = "pool: it cannot be copied or pickled, as sessions hold its pages; PagePool(...) makes another one"

    def __init__(
        self,
        layers: int,
        pages: int,
        heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, size in (("layers", layers), ("pages", pages), ("heads", heads), ("head_dim", head_dim)):
            require_type(name, size, int)
            require(size >= 1, name, "at least 1", size)
        require(dtype in PAGE_DTYPES, "dtype", " or ".join(map(str, PAGE_DTYPES)), dtype)
        _require_room("pages", pages, pool_bytes(layers, pages, heads, head_dim, dtype), torch.device(device))
        self.k = torch.zeros(layers, pages, PAGE_SLOTS, heads, head_dim, dtype=dtype, device=device)
        self.v = torch.zeros_like(self.k)
        self.by_layer = list(zip(self.k.unbind(0), self.v.unbind(0), strict=True))
        """For each layer its keys and values [pages, 64, heads, head_dim], as the ops take them."""
        self._holders = [0] * pages
        self._free = list(range(pages))[::-1]  # a stack, page 0 on top
        self._reserved = 0

    @classmethod
    def for_model(cls, model: StreamModel, pages: int) -> PagePool:
        """A pool of `pages` pages with the layers, heads, dtype and device of `model`. Raises as the constructor.

        RuntimeError in a child of the process that made the model.
        """
        model.require_own_process()
        config = model.config
        return cls(config.layers, pages, config.heads, config.head_dim, model.dtype, model.device)

    @classmethod
    def for_sessions(
        cls,
        model: StreamModel,
        sessions: int,
        *,
        sampler: Sampler | None = None,
        text_length: int = 0,
        history: int = 0,
    ) -> PagePool:
        """A pool with the pages of `sessions` sessions of `model` at a time.

        Args:
            model: of all sessions.
            sessions: at least 1; a fork is a session.
            sampler: of all sessions; None for the generator's own choice.
            text_length: most tokens of a prompt, for generators whose frames attend to it through the cache.
            history: steps that each session can go back by.

        Raises TypeError and ValueError for other arguments, PoolExhausted for more sessions than the device has memory
        left for; nothing has been allocated then.
        """
        require_type("model", model, StreamModel)
        require_type("sessions", sessions, int)
        require(sessions >= 1, "sessions", "at least 1", sessions)
        pages = sessions * session_pages(model.generator, model.grid, sampler, text_length, history)
        config = model.config
        needed = pool_bytes(config.layers, pages, config.heads, config.head_dim, model.dtype)
        _require_room("sessions", sessions, needed, model.device)
        return cls.for_model(model, pages)

    def __repr__(self) -> str:
        return f"PagePool({self.available} of {self.pages} pages available, {self.k.dtype}, on {self.k.device})"

    @property
    def pages(self) -> int:
        """Number of pages."""
        return len(self._holders)

    @property
    def free(self) -> int:
        """Number of pages without a holder."""
        return len(self._free)

    @property
    def available(self) -> int:
        """Number of pages that can still be reserved."""
        return min(self.pages - self._reserved, self.free)

    @property
    def bytes(self) -> int:
        """Bytes of `k` and `v`."""
        return self.k.nbytes + self.v.nbytes

    def reserve(self, count: int) -> None:
        """Reserve the `count` pages that the caller will hold at most. Raises PoolExhausted if fewer are available."""
        if count > self.available:
            left = f"{self.available} of {self.pages} are available"
            raise PoolExhausted(f"pool: asked for {count} pages, {left}; {LARGER}")
        self._reserved += count

    def unreserve(self, count: int) -> None:
        """End the reservation of `count` pages. Raises ValueError if fewer are reserved."""
        require(count <= self._reserved, "count", f"at most the {self._reserved} reserved pages", count)
        self._reserved -= count

    def allocate(self, count: int) -> list[int]:
        """Take `count` free pages, and return their ids. The caller is their holder; their contents are undefined.

        Raises PoolExhausted, having changed nothing, if fewer are free.
        """
        if count > self.free:
            raise PoolExhausted(f"pool: asked for {count} pages, {self.free} of {self.pages} are free; {LARGER}")
        ids = [self._free.pop() for _ in range(count)]
        for page in ids:
            self._holders[page] = 1
        return ids

    def share(self, ids: Sequence[int]) -> None:
        """Add a holder to each of these pages. Raises ValueError, having changed nothing, if one is free."""
        self._require_holds(ids)
        for page in ids:
            self._holders[page] += 1

    def is_shared(self, page: int) -> bool:
        """True if `page` has several holders, so that none of them may write to it."""
        return self._holders[page] > 1

    def release(self, ids: Sequence[int]) -> None:
        """Take one holder away from each of these pages; a page without any is free.

        Raises ValueError, having changed nothing, for a page that is not held that often: it was released before.
        """
        self._require_holds(ids)
        for page in ids:
            self._holders[page] -= 1
            if self._holders[page] == 0:
                self._free.append(page)

    def copy_pages(self, ids: Sequence[int], source: PagePool, source_ids: Sequence[int]) -> None:
        """Copy pages of `source`, a pool with equal layers and heads (it may be this one), to pages of this pool."""
        for page, source_page in zip(ids, source_ids, strict=True):
            self.k[:, page].copy_(source.k[:, source_page])
            self.v[:, page].copy_(source.v[:, source_page])

    def _require_holds(self, ids: Sequence[int]) -> None:
        for page, count in Counter(ids).items():
            require(0 <= page < self.pages, "ids", f"pages in 0..{self.pages - 1}", page)
            holders = self._holders[page]
            require(
                count <= holders, "ids", "pages that are held", f"page {page} {count} times, it has {holders} holders"
            )


def _require_room(argument: str, count: int, needed: int, device: torch.device) -> None:
    """Raise PoolExhausted if `device` has less than `needed` bytes left for the `count` in `argument`."""
    left = memory_left(device)
    if left is not None and needed > left:
        expected = f"a number whose pages fit into the {in_units(left)} of memory left on {device}"
        raise PoolExhausted(f"{argument}: expected {expected}, got {count}, whose pages need {in_units(needed)}")
