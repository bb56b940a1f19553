# SPDX-License-Identifier: Apache-2.0
"""Chance: random draws per video frame, and other futures that begin alike."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from aapt_fast.errors import require


class Chance:
    """Random draws of one clip, each a function of (seed, name, video frame).

    Futures share the draws of the first video frame, which is given, and have their own from the second one on.
    Raises ValueError for a negative future.
    """

    def __init__(self, seed: int, future: int = 0) -> None:
        require(future >= 0, "future", "0, 1, 2, ...", future)
        self._seed, self._future = seed, future

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
        """(seed, video frames) of the spans of a clip whose motions are drawn from one seed each."""
        return [(_mix(self._seed, name, future), length) for future, length in self._spans(frames)]

    def _spans(self, frames: int) -> list[tuple[int, int]]:
        """(future, video frames): what all futures share, and what this one does with the rest."""
        return [(0, frames)] if self._future == 0 or frames <= 1 else [(0, 1), (self._future, frames - 1)]

    def _generator(self, name: str, future: int) -> torch.Generator:
        return torch.Generator().manual_seed(_mix(self._seed, name, future))


def _mix(seed: int, name: str, future: int) -> int:
    """A seed in which seeds, names and futures do not meet, as they would in a sum."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name} {future}".encode()).digest()[:4], "big")
