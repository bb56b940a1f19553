# SPDX-License-Identifier: Apache-2.0
"""What `--motion` names: a motion, a medley, or a script of motions with their lengths in video frames."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aapt_fast.errors import require
from aapt_fast.worlds.motions import MOTIONS, MotionPlayer

MEDLEY = "medley"
LENGTH = 48  # video frames of a part that gives none and is not the last
NAMES = " | ".join(MOTIONS)


@dataclass(frozen=True)
class Part:
    """One motion of a script and its video frames, if it says so."""

    name: str
    frames: int | None


def read_script(text: str) -> tuple[Part, ...]:
    """The parts of `walk:48,wave:72`, of one motion's name, or of `medley`. Raises ValueError for anything else."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) == 1 and ":" not in text:
        expected = f"{NAMES} | {MEDLEY}, or a script like walk:48,wave:72"
        require(parts[0] in (*MOTIONS, MEDLEY), "--motion", expected, parts[0] or "nothing")
    for part in parts:
        require(part != "", "--motion", "a motion before and after every comma", repr(text))
    return (Part(MEDLEY, None),) if parts == [MEDLEY] else tuple(_read_part(part) for part in parts)


def script_frames(script: tuple[Part, ...]) -> int | None:
    """How many video frames the script asks for, or None if a part does not say."""
    lengths = [part.frames for part in script if part.frames is not None]
    return sum(lengths) if len(lengths) == len(script) else None


class ScriptPlayer:
    """Plays the parts of a script one after the other; the last goes on for ever. The rest as in `MotionPlayer`."""

    def __init__(self, script: tuple[Part, ...], seed: int = 0, start: Tensor | None = None, hold: int = 0) -> None:
        self._player = MotionPlayer(script[0].name, seed, start, hold)
        self._left, self._coming = _length(script[0]), list(script[1:])

    def next(self, frames: int) -> Tensor:
        """Pose angles [frames, 17] of the next video frames."""
        angles = []
        while self._coming and frames > self._left:
            angles.append(self._player.next(self._left))
            frames -= self._left
            part = self._coming.pop(0)
            self._player.play(part.name)
            self._left = _length(part)
        self._left -= frames
        return torch.cat([*angles, self._player.next(frames)])


def _read_part(part: str) -> Part:
    name, colon, length = (piece.strip() for piece in part.partition(":"))
    require(name in MOTIONS, "--motion", f"{NAMES} in a script ({MEDLEY} stands alone)", part)
    if not colon:
        return Part(name, None)
    fits = length.isascii() and length.isdecimal() and len(length) < 10 and int(length) > 0
    require(fits, "--motion", "name:video frames", part)
    return Part(name, int(length))


def _length(part: Part) -> int:
    return LENGTH if part.frames is None else part.frames
