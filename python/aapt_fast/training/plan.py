# SPDX-License-Identifier: Apache-2.0
"""Plan of a training in words: its stages, the parts that are done, the time it took before, and the room it needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aapt_fast.limits import require_disk, require_memory
from aapt_fast.training.adversarial import AdversarialConfig
from aapt_fast.training.codec import CodecConfig
from aapt_fast.training.data import clip_rows
from aapt_fast.training.recipes import Recipe
from aapt_fast.training.rows import Rows
from aapt_fast.training.run import on_disk, steps_on_disk

WITHOUT_CLIPS = ("export", "evaluate")  # stages that need no clips of the training
TRIAL_NOTE = (
    "  a trial, some minutes on two quiet cores and several times as long beside other processes: it shows that"
    " training works here; its model is good for nothing else, and its folder cannot be trained further"
)


def stage_config(recipe: Recipe, stage: str) -> Any:
    """The settings of a stage's training; None where nothing is trained."""
    config = recipe.adversarial
    if stage == "reconstruction":
        steps = config.steps - config.discriminator_alone
        return dataclasses.replace(config, adversarial=0.0, balanced=False, steps=steps)
    return None if stage in WITHOUT_CLIPS else getattr(recipe, stage)


def result_path(out: Path, stage: str) -> Path:
    """The weights that a finished training stage leaves."""
    return out / stage / ("vae.pt" if stage == "codec" else "generator.pt")


def describe_plan(recipe: Recipe, out: Path, stages: Sequence[str]) -> str:
    """The plan of these stages in the folder `out`: a line for each, with what is there and how long it took once."""
    lines, total = [f"train {recipe.name} in {out}:"], 0.0
    if recipe.trial:
        lines.append(TRIAL_NOTE)
    for name in (*(["render"] if _needs_clips(recipe, stages) else []), *stages):
        done, share_left = _progress(recipe, out, name)
        title = f"stage {stages.index(name) + 1} of {len(stages)}: {name}" if name in stages else "clips"
        minutes = share_left * recipe.minutes.get(name, 0)
        lines.append(f"  {title}: {done}" + (f", about {minutes:.0f} min *" if minutes else ""))
        total += minutes
    if total:
        lines.append(f"* {total:.0f} min in all, from the times of a run {recipe.measured}; yours will differ")
    return "\n".join(lines)


def describe_state(recipe: Recipe, out: Path, stage: str) -> str:
    """The state on disk that a later run resumes from, if this one was stopped in `stage`."""
    if stage in WITHOUT_CLIPS:
        return f"finished stages are in {out}"
    clips = f"clips: {_progress(recipe, out, 'render')[0]}"
    return clips if stage_config(recipe, stage) is None else f"{on_disk(out / stage)}; {clips}"


def _progress(recipe: Recipe, out: Path, stage: str) -> tuple[str, float]:
    """The state of a stage, or of the clips for "render", in words, and the share of it that is left."""
    config = None if stage == "render" else stage_config(recipe, stage)
    if stage == "render":
        rows = _clips(recipe, out)
        words = " and ".join(f"{each.there} of {each.count} of {each.name}" for each in rows)
        return f"{words} are rendered", 1 - sum(each.there for each in rows) / sum(each.count for each in rows)
    if config is None:
        instead = {"codec": f"taken from {recipe.vae or recipe.start}", "pretrain": "not part of this recipe"}
        return instead.get(stage, "made anew"), float(stage in WITHOUT_CLIPS)
    steps = steps_on_disk(out / stage)
    return f"{steps} of {config.steps} steps are done", max(0.0, 1 - steps / max(1, config.steps))


def require_room(recipe: Recipe, out: Path, stages: Sequence[str]) -> None:
    """Raise ValueError, naming setting, need and supply, if clips or batches exceed the disk or the memory.

    The needs are lower bounds: data, and the activations that a backward pass cannot do without.
    """
    if not _needs_clips(recipe, stages):
        return
    model, cells = recipe.diffusion.model, 0
    for config in recipe.training_sets:
        cells += config.clips * (1 + (config.frames - 1) // 4) * model.latent_channels * model.grid[0] * model.grid[1]
    new = sum(rows.nbytes for rows in _clips(recipe, out) if not rows.there)
    if new:  # else they have their room, and latents had it
        require_disk("clips, frames and size of the training sets", out, new + 4 * cells)
    require_memory("clips and frames of the training sets", 8 * cells)  # float32, once in parts and once as a whole
    for stage in stages:
        config = stage_config(recipe, stage)
        if isinstance(config, CodecConfig):  # video, reconstruction and their gradients
            require_memory(f"batch and crop of stage {stage}", 48 * config.batch * config.crop_frames * config.crop**2)
        elif config is not None:  # eight float32 numbers per token, channel and layer
            frames = config.segment_frames if isinstance(config, AdversarialConfig) else config.clip_frames
            tokens = config.batch * frames * config.model.tokens
            needed = 32 * tokens * config.model.width * config.model.layers
            require_memory(f"batch and frames of stage {stage}", needed)


def _needs_clips(recipe: Recipe, stages: Sequence[str]) -> bool:
    """True if one of `stages` trains something."""
    return any(stage_config(recipe, stage) is not None for stage in stages)


def _clips(recipe: Recipe, out: Path) -> list[Rows]:
    return [clip_rows(out / "data", config) for config in recipe.codec_sets]
