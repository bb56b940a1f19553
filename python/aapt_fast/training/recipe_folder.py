# SPDX-License-Identifier: Apache-2.0
"""The folder of a run belongs to one recipe: its name and its start stand in `recipe.json`, and others are refused."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from aapt_fast.errors import require
from aapt_fast.models.vae.mini import MiniVAE
from aapt_fast.training.files import load_finite, write_text
from aapt_fast.training.own_folder import NOTE, STAGES, in_words, require_own_folder, require_same_note
from aapt_fast.training.plan import result_path, stage_config
from aapt_fast.training.recipes import Recipe
from aapt_fast.training.run import require_same_config


def note_recipe(recipe: Recipe, out: Path) -> None:
    """Write name and start of the recipe to `out`/recipe.json."""
    write_text(out / NOTE, json.dumps({"name": recipe.name, "start": recipe.start}, indent=1))


def require_same_recipe(recipe: Recipe, out: Path, start: MiniVAE | None) -> None:
    """Raise ValueError, before anything is written, if the folder `out` belongs to another recipe or holds other files.

    `start` is the codec that the recipe gives, None without one. A folder of an older version, which has stages but no
    recipe.json, is taken unless the settings of a stage or the origin of the codec contradict the recipe.
    """
    require_same_note("out", out, recipe.name, recipe.start)
    if (out / NOTE).exists():
        if recipe.vae is not None and (path := result_path(out, "codec")).exists():
            same = start is not None and _holds(path, start)
            require(same, "out", f"a new folder, or one with the codec of {recipe.vae}", f"{out} with another codec")
        return
    require_own_folder("out", out)
    for stage in STAGES:
        config = stage_config(recipe, stage)
        if config is not None:
            require_same_config(out / stage, config)
    path = result_path(out, "codec")
    if path.exists():
        trained = (out / "codec" / "config.json").exists()
        same = trained if recipe.codec is not None else start is not None and _holds(path, start)
        asked = in_words(recipe.name, recipe.start)
        require(same, "out", f"a new folder or one of {asked}", f"{out}, where {path} is the codec of another recipe")


def _holds(path: Path, vae: MiniVAE) -> bool:
    """True if the file holds the weights of `vae`, bit by bit."""
    kept, own = load_finite(path), vae.state_dict()
    return kept.keys() == own.keys() and all(torch.equal(kept[name], own[name]) for name in own)
