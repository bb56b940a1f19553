# SPDX-License-Identifier: Apache-2.0
"""Uploaded pictures and replays, in memory, under random names: no name of a client's reaches the file system."""

from __future__ import annotations

import secrets
from collections import OrderedDict


class Uploads:
    """Keeps the newest uploads.

    Args:
        count: of pictures and replays together.
        size: bytes of all of them.
    """

    def __init__(self, count: int, size: int) -> None:
        self._count, self._size = count, size
        self._kept: OrderedDict[tuple[str, str], bytes] = OrderedDict()

    def add(self, kind: str, data: bytes) -> str:
        """Keep an upload; returns its name. The oldest ones go where there are too many."""
        name = secrets.token_urlsafe(12)
        self._kept[kind, name] = data
        while len(self._kept) > self._count or (len(self._kept) > 1 and self.bytes > self._size):
            self._kept.popitem(last=False)
        return name

    def get(self, kind: str, name: str) -> bytes | None:
        """The upload of this name; None if it is not there, or not any more."""
        return self._kept.get((kind, name))

    @property
    def bytes(self) -> int:
        """Of all that is kept."""
        return sum(map(len, self._kept.values()))
