# SPDX-License-Identifier: Apache-2.0
"""Refusal to copy objects whose state cannot be in two of them, such as pages of memory."""

from __future__ import annotations

from typing import ClassVar, NoReturn, SupportsIndex


class NotCopied:
    """Base class whose objects refuse copy.copy, copy.deepcopy and pickle with one sentence.

    A subclass sets `no_copy` to that sentence: the refusal, and the way to get another object.
    """

    no_copy: ClassVar[str]

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Raise TypeError. copy and pickle call this method first."""
        raise TypeError(self.no_copy)
