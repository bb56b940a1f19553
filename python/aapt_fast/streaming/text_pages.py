# SPDX-License-Identifier: Apache-2.0
"""A prompt in pages: its keys and values are computed once and shared by every cache of a pool that needs them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aapt_fast.errors import require, require_shape
from aapt_fast.ops import kv_write
from aapt_fast.ops.cache import KeysAndValues
from aapt_fast.streaming.pages import PagePool, pages_for, released_on_failure, valid_slots


class TextPages:
    """Keys and values of a prompt at one timestep, written once, for any number of caches in one pool.

    The pages are given back when the last holder has called `release`; the creator of the object is its first holder.

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
        self.valid = valid_slots(length)  # of each page
        self.pool, self.length, self.ids, self._holders = pool, length, pool.allocate(pages_for(length)), 1
        with released_on_failure(self):
            self._write(keys_values)

    def share(self) -> TextPages:
        """This object, with one more holder."""
        require(self._holders > 0, "text", "pages that are held", "released ones")
        self._holders += 1
        return self

    def takes(self, length: int) -> bool:
        """True if `rewrite` has room for a prompt of so many tokens, and no other holder reads the pages."""
        return self._holders == 1 and pages_for(length) <= len(self.ids)

    def rewrite(self, keys_values: Sequence[KeysAndValues]) -> None:
        """Write another prompt into the same pages, for which `takes` is True: [1, L, Hkv, D], as the constructor."""
        self.length = keys_values[0][0].shape[1]
        counts = valid_slots(self.length)
        surplus = self.ids[len(counts) :]
        self.ids, self.valid = self.ids[: len(counts)], counts
        self.pool.release(surplus)
        self.pool.unreserve(len(surplus))
        self._write(keys_values)

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
