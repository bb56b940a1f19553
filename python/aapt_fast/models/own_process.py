# SPDX-License-Identifier: Apache-2.0
"""The process that an object serves. After `os.fork()` torch's threads are not in the child, where it would hang."""

from __future__ import annotations

import os
from typing import Any

ADVICE = (
    "before os.fork(), and torch's threads are not in this one; start processes with spawn, and load models and open "
    "sessions there, see docs/reference/threads.md"
)


class OwnProcess:
    """Remembers the process in which it was made; copies remember the same, and unpickled ones their own.

    `made` says how its object came about, for the message: "model: it was made".
    """

    def __init__(self, made: str) -> None:
        self._made = made
        self._process = os.getpid()

    @property
    def is_here(self) -> bool:
        """True in that process."""
        return self._process == os.getpid()

    def require(self) -> None:
        """Raise RuntimeError in another process."""
        if not self.is_here:
            raise RuntimeError(f"{self._made} in another process, {ADVICE}")

    def __deepcopy__(self, memo: dict[int, Any]) -> OwnProcess:
        return self  # whose weights are copied where they can be

    def __reduce__(self) -> tuple[type[OwnProcess], tuple[str]]:
        return type(self), (self._made,)

    def __copy__(self) -> OwnProcess:
        return self
