# SPDX-License-Identifier: Apache-2.0
"""Trial of a recipe: the same stages with few clips and steps, to see in minutes that training works here."""

from __future__ import annotations

import dataclasses
from typing import Any

from aapt_fast.training.data import ClipSetConfig
from aapt_fast.training.own_folder import TRIAL
from aapt_fast.training.recipes import Recipe

CLIPS = 8  # of each training set
HELD_OUT_CLIPS = 1
EVALUATED_FRAMES = 13  # video frames of held-out clips
STEPS = {"codec": 12, "pretrain": 4, "diffusion": 12, "consistency": 4, "adversarial": 4}
ALONE = 1  # of the adversarial steps are the discriminator's alone


def trial_of(recipe: Recipe) -> Recipe:
    """The recipe with the same networks and batches, and so few clips and steps that its model is good for nothing.

    Nothing is compiled, which takes longer than it saves, and the evaluation reads no controls off the videos, for
    which a network of its own would be trained first. The name says that it is a trial.
    """
    first, *_ = recipe.held_out
    return dataclasses.replace(
        recipe,
        name=f"{recipe.name}{TRIAL}",
        strangers=recipe.strangers and dataclasses.replace(recipe.strangers, clips=CLIPS),
        gallery=dataclasses.replace(recipe.gallery, clips=CLIPS),
        held_out_strangers=recipe.held_out_strangers and _short(recipe.held_out_strangers),
        held_out_gallery=_short(recipe.held_out_gallery),
        held_out=(_short(first),),
        also_coded=tuple((dataclasses.replace(each, clips=CLIPS), _short(other)) for each, other in recipe.also_coded),
        codec=recipe.codec and dataclasses.replace(recipe.codec, compile=False, **_few_steps("codec")),
        pretrain=recipe.pretrain and dataclasses.replace(recipe.pretrain, **_few_steps("pretrain")),
        diffusion=dataclasses.replace(recipe.diffusion, compile=False, **_few_steps("diffusion")),
        consistency=dataclasses.replace(recipe.consistency, **_few_steps("consistency")),
        adversarial=dataclasses.replace(recipe.adversarial, discriminator_alone=ALONE, **_few_steps("adversarial")),
        minutes={},
        measured="",
    )


def _few_steps(stage: str) -> dict[str, Any]:
    """Steps of a stage, evaluated before the first and after the last."""
    return {"steps": STEPS[stage], "evaluate_every": STEPS[stage]}


def _short(config: ClipSetConfig) -> ClipSetConfig:
    return dataclasses.replace(config, clips=HELD_OUT_CLIPS, frames=EVALUATED_FRAMES)
