# SPDX-License-Identifier: Apache-2.0
"""Key-value cache of Self-Forcing-like models: a dictionary like theirs whose memory is pages.

    {"k": [B, S, H, D], "v": [B, S, H, D], "global_end_index": ..., "local_end_index": ...}

The original indices are tensors on the GPU. The model reads them back several times per layer and step and waits each
time. Here they are numbers on the host with the same methods, so that code that is not patched does not wait either.
Keys and values may be read and written as before; their memory continues behind them to the end of a page, so that
any part of them is a list of pages without a copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from aapt_fast.errors import require_shape
from aapt_fast.ops import PAGE_SLOTS

INDICES = ("global_end_index", "local_end_index")


class HostIndex:
    """Number on the host that is read and set like a tensor with one element."""

    def __init__(self, value: int = 0) -> None:
        self.value = int(value)

    def item(self) -> int:
        """Give the number."""
        return self.value

    def fill_(self, value: int | Tensor) -> HostIndex:
        """Set the number."""
        self.value = int(value)
        return self

    def zero_(self) -> HostIndex:
        """Set the number to 0."""
        return self.fill_(0)

    def __index__(self) -> int:
        return self.value

    def __repr__(self) -> str:
        return f"HostIndex({self.value})"


class PagedKVCache(dict[str, Any]):
    """Cache of one layer, made from one of the model's own code.

    Args:
        cache: "k" and "v" [B, S, H, D] and the two indices, tensors or ints; other entries are kept.

    Raises ValueError if "k" and "v" differ in shape.
    """

    def __init__(self, cache: Mapping[str, Any]) -> None:
        require_shape("k", cache["k"], "B", "S", "H", "D")
        require_shape("v", cache["v"], *cache["k"].shape)
        super().__init__({**cache, "k": _in_pages(cache["k"]), "v": _in_pages(cache["v"])})
        for name in INDICES:
            self[name] = cache[name]

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, HostIndex(value) if name in INDICES else value)


def set_index(cache: dict[str, Any], name: str, value: int) -> None:
    """Set an index of a cache, in place where it is a tensor or a `HostIndex`."""
    if isinstance(cache[name], Tensor | HostIndex):
        cache[name].fill_(value)
    else:
        cache[name] = value


def _in_pages(x: Tensor) -> Tensor:
    """Copy of x [B, S, H, D] with whole pages of memory behind its last token."""
    batch, length, *rest = x.shape
    pages = -(-length // PAGE_SLOTS) + 1  # a list of pages may begin at any token
    memory = torch.zeros(batch, pages * PAGE_SLOTS, *rest, dtype=x.dtype, device=x.device)
    view = memory[:, :length]
    view.copy_(x)
    return view
