# SPDX-License-Identifier: Apache-2.0
"""What no control decides: random draws per video frame, and other futures that begin alike."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from aapt_fast.errors import require


class Chance:
    """Random draws of one clip, each a function of (seed, name, video frame).

    Another `future` has the same draws before video frame `parting` and its own from there on; future 0 never parts.
    Raises ValueError for a negative future or a parting before video frame 1, since the first frame is given.
    """

    def __init__(self, seed: int, future: int = 0, parting: int = 1) -> None:
        require(future >= 0, "future", "0, 1, 2, ...", future)
        require(parting >= 1, "parting", "at least 1", parting)
        self._seed, self._future, self._parting = seed, future, parting

    def once(self, name: str, count: int) -> list[float]:
        """`count` draws from 0..1, the same in every future."""
        return torch.rand(count, generator=self._generator(name, 0)).tolist()

    def each_frame(self, name: str, frames: int, count: int) -> Tensor:
        """Draws [frames, count] from 0..1; those of a shorter clip are the first of a longer one's."""
        parts = [
            torch.rand(length, count, generator=self._generator(name, future)) for future, length in self._spans(frames)
        ]
        return torch.cat(parts)

    def seeds(self, name: str, frames: int) -> list[tuple[int, int]]:
        """(seed, video frames) of the time before the parting and after it, for what draws by itself."""
        return [(_mix(self._seed, name, future), length) for future, length in self._spans(frames)]

    def _spans(self, frames: int) -> list[tuple[int, int]]:
        if self._future == 0 or frames <= self._parting:
            return [(0, frames)]
        return [(0, self._parting), (self._future, frames - self._parting)]

    def _generator(self, name: str, future: int) -> torch.Generator:
        return torch.Generator().manual_seed(_mix(self._seed, name, future))


def _mix(seed: int, name: str, future: int) -> int:
    """A seed in which seeds, names and futures do not meet, as they would in a sum."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name} {future}".encode()).digest()[:4], "big")
