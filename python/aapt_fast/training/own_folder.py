# SPDX-License-Identifier: Apache-2.0
"""Folders that a training may write to: new and empty ones, and those of a run. No torch, for the command line."""

from __future__ import annotations

from pathlib import Path

from aapt_fast.errors import require

STAGES = ("codec", "pretrain", "diffusion", "consistency", "reconstruction", "adversarial", "export", "evaluate")
"""Stages of a recipe, in their order; each has a folder of its name, but the export, which has that of the model."""
NOTE, CLIPS = "recipe.json", "data"
LEFT_BY_A_STAGE = ("config.json", "vae.pt", "generator.pt")


def require_own_folder(argument: str, folder: Path) -> None:
    """Raise ValueError, naming a file, for a folder with files of others. Hidden ones do not count.

    A folder of an older version has no recipe.json, but stages, or at first only clips.
    """
    if not folder.exists() or (folder / NOTE).exists():
        return
    if any((folder / stage / name).exists() for stage in STAGES for name in LEFT_BY_A_STAGE):
        return
    others = sorted(entry.name for entry in folder.iterdir() if entry.name != CLIPS and not entry.name.startswith("."))
    expected = "a new or empty folder, or that of a training that has begun"
    require(not others, argument, expected, f"{folder} with {others[0] if others else 'nothing'}")
