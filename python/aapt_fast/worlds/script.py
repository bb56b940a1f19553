# SPDX-License-Identifier: Apache-2.0
"""Scripts of motions: an action of a world, a medley, or several actions and their lengths in video frames."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from aapt_fast.errors import require, require_type
from aapt_fast.worlds.world import MEDLEY, Part


def read_script(text: str, actions: Sequence[str], argument: str = "script") -> tuple[Part, ...]:
    """Parts of "walk:48,wave:72", of one of the `actions`, or of "medley"; the last has no end without a length.

    Raises TypeError or ValueError, naming `argument`, for anything else.
    """
    require_type(argument, text, str)
    parts = [part.strip() for part in text.split(",")]
    if len(parts) == 1 and ":" not in text:
        expected = f"{' | '.join(actions)} | {MEDLEY}, or a script like walk:48,wave:72"
        require(parts[0] in (*actions, MEDLEY), argument, expected, _unknown(parts[0], (*actions, MEDLEY)))
    for part in parts:
        require(part != "", argument, "a motion before and after every comma", repr(text))
    return (Part(MEDLEY),) if parts == [MEDLEY] else tuple(_read_part(part, actions, argument) for part in parts)


def script_frames(script: tuple[Part, ...]) -> int | None:
    """Video frames of the whole script, or None if a part gives none."""
    lengths = [part.frames for part in script if part.frames is not None]
    return sum(lengths) if len(lengths) == len(script) else None


def _read_part(text: str, actions: Sequence[str], argument: str) -> Part:
    action, colon, length = (piece.strip() for piece in text.partition(":"))
    expected = f"{' | '.join(actions)} in a script ({MEDLEY} stands alone)"
    require(action in actions, argument, expected, text if action == MEDLEY else _unknown(text, actions))
    if not colon:
        return Part(action)
    fits = length.isascii() and length.isdecimal() and len(length) < 10 and int(length) > 0
    require(fits, argument, f"a number of video frames from 1 to 999999999 after {action}:", length or "nothing")
    return Part(action, int(length))


def _unknown(text: str, names: Sequence[str]) -> str:
    """Quote an unknown motion or part of a script for a message, with the name that it resembles, if any."""
    near = difflib.get_close_matches(text.partition(":")[0].strip().lower(), names, 1)
    return f"{text}; did you mean {near[0]}?" if near else text or "nothing"
