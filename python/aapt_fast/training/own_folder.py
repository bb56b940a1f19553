# SPDX-License-Identifier: Apache-2.0
"""Folders that a training or an evaluation may write to: new and empty ones, and its own. Without torch."""

from __future__ import annotations

import json
from pathlib import Path

from aapt_fast.errors import require

STAGES = ("codec", "pretrain", "diffusion", "consistency", "reconstruction", "adversarial", "export", "evaluate")
"""Stages of a recipe, in their order; each has a folder of its name, but the export, which has that of the model."""
NOTE, CLIPS = "recipe.json", "data"
TRIAL = "-trial"
"""End of the name of a recipe's trial."""
LEFT_BY_A_STAGE = ("config.json", "vae.pt", "generator.pt")
MEASURED, CURVES = "measured.pt", "drift.csv"
"""Files of an evaluation: its measurements so far, and its curves at the end."""


def require_same_note(argument: str, folder: Path, name: str, start: str | None) -> None:
    """Raise ValueError if the note in `folder` names another recipe, or a trial where the recipe is none, or a start.

    A trial and a training do not share a folder, since neither resumes the other.
    """
    note = folder / NOTE
    if not note.exists():
        return
    try:
        began = json.loads(note.read_text(encoding="utf-8"))
        there = in_words(began["name"], began["start"])
    except (ValueError, KeyError, TypeError) as error:
        got = f"{note}, which is damaged ({type(error).__name__})"
        raise ValueError(f"{argument}: expected a new folder or one of a training, got {got}") from error
    asked = in_words(name, start)
    require(there == asked, argument, f"a new folder or one of {asked}", f"{folder}, which holds {there}")


def in_words(name: str, start: str | None) -> str:
    """A recipe's name and the model that it starts from, None for none, in words."""
    trial = "a trial of " if name.endswith(TRIAL) else ""
    return f"{trial}recipe {name.removesuffix(TRIAL)} from {start or 'nothing'}"


def require_own_folder(argument: str, folder: Path) -> None:
    """Raise ValueError, naming a file, for a folder with files of others. Hidden ones do not count.

    A folder of an older version has no recipe.json, but stages, or at first only clips.
    """
    if not folder.exists() or (folder / NOTE).exists():
        return
    if any((folder / stage / name).exists() for stage in STAGES for name in LEFT_BY_A_STAGE):
        return
    _require_no_others(argument, folder, "a training that has begun", allowed=CLIPS)


def require_report_folder(argument: str, folder: Path) -> None:
    """Raise ValueError, naming a file, for a folder with files of others, which a report could replace."""
    if folder.exists() and not any((folder / name).exists() for name in (MEASURED, CURVES)):
        _require_no_others(argument, folder, "an evaluation that has begun")


def _require_no_others(argument: str, folder: Path, owner: str, allowed: str = "") -> None:
    """Raise ValueError for a file in `folder` that is neither hidden nor `allowed`."""
    others = sorted(
        entry.name for entry in folder.iterdir() if entry.name != allowed and not entry.name.startswith(".")
    )
    expected = f"a new or empty folder, or that of {owner}"
    require(not others, argument, expected, f"{folder} with {others[0] if others else 'nothing'}")
