# SPDX-License-Identifier: Apache-2.0
"""The option `--motion`: an action of the world, a medley, or a script of actions and their lengths in video frames."""

from __future__ import annotations

from aapt_fast.errors import require
from aapt_fast.worlds.world import MEDLEY, Part, World


def read_script(text: str, world: World) -> tuple[Part, ...]:
    """The parts of `walk:48,wave:72`, of one action's name, or of `medley`. Raises ValueError for anything else."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) == 1 and ":" not in text:
        expected = f"{' | '.join(world.actions)} | {MEDLEY}, or a script like walk:48,wave:72"
        require(parts[0] in (*world.actions, MEDLEY), "--motion", expected, parts[0] or "nothing")
    for part in parts:
        require(part != "", "--motion", "a motion before and after every comma", repr(text))
    return (Part(MEDLEY),) if parts == [MEDLEY] else tuple(_read_part(part, world) for part in parts)


def script_frames(script: tuple[Part, ...]) -> int | None:
    """Video frames of the whole script, or None if a part gives none."""
    lengths = [part.frames for part in script if part.frames is not None]
    return sum(lengths) if len(lengths) == len(script) else None


def _read_part(text: str, world: World) -> Part:
    action, colon, length = (piece.strip() for piece in text.partition(":"))
    expected = f"{' | '.join(world.actions)} in a script ({MEDLEY} stands alone)"
    require(action in world.actions, "--motion", expected, text)
    if not colon:
        return Part(action)
    fits = length.isascii() and length.isdecimal() and len(length) < 10 and int(length) > 0
    require(fits, "--motion", "name:video frames", text)
    return Part(action, int(length))
