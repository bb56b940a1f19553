# SPDX-License-Identifier: Apache-2.0
"""The recipe for a folder of one's own videos: that of `mini-person`, with another control or none."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from aapt_fast.errors import require
from aapt_fast.models.aapt.config import ControlConfig
from aapt_fast.models.aapt.convert import bidirectional
from aapt_fast.models.aapt.presets import PERSON_CONTROL
from aapt_fast.training.data import ClipSetConfig
from aapt_fast.training.recipes import PERSON, Recipe
from aapt_fast.worlds.filmed.folder import SPAN
from aapt_fast.worlds.filmed.world import CELL, FilmedWorld

NAME = "own"
LEAST_CLIPS = 10  # of which one is held out
EVALUATED = 16  # held-out clips, at most
FIRST_FRAMES = 8
LIMBS = "limbs.json"


def own_recipe(folder: Path, skip_faults: bool = False, base: Recipe = PERSON) -> Recipe:
    """The recipe for the videos of a folder, with the sizes and steps of `base`.

    `worlds/filmed/folder.py` says what the folder may hold.

    A model without controls is trained with refinement in stage 3, as chance decides what comes next; one with controls
    as `mini-person` was. Settings of both come from other worlds.

    Raises ValueError for a faulty file (unless faults are skipped), less than 25 seconds of video, poses of other
    joints than the person world's without `limbs.json`, and maps of another size than the latent frames.
    """
    world = FilmedWorld.of(folder, skip_faults)
    total = world.clips + world.evaluated().clips
    expected = f"videos with at least {LEAST_CLIPS} clips of {(1 + SPAN) / 24:.1f} s"
    require(total >= LEAST_CLIPS, "data", expected, f"{total} clips in {folder}")
    grid, rest = base.diffusion.model.grid, world.evaluated()
    model = dataclasses.replace(base.diffusion.model, control=control_of(world, folder, grid))
    trained = ClipSetConfig(NAME, world, clips=world.clips, size=CELL * grid[0])
    evaluated = dataclasses.replace(trained, name=f"{NAME}-held-out", world=rest, clips=min(EVALUATED, rest.clips))
    first_frames = dataclasses.replace(trained, name=f"{NAME}-first-frames", clips=FIRST_FRAMES, frames=5)
    segments = min(base.adversarial.segments, SPAN // 4 // base.adversarial.segment_frames)  # no longer than a clip
    adversarial = dataclasses.replace(base.adversarial, model=model, segments=segments)
    if world.control is None:
        adversarial = dataclasses.replace(adversarial, adversarial=0.0, reconstruction=0.0, refinement=1.0)
    return Recipe(
        name=NAME,
        strangers=None,
        gallery=trained,
        held_out_strangers=None,
        held_out_gallery=evaluated,
        first_frames=first_frames,
        held_out=(evaluated,),
        codec=base.codec,
        pretrain=base.pretrain and dataclasses.replace(base.pretrain, model=bidirectional(model)),
        diffusion=dataclasses.replace(base.diffusion, model=model),
        consistency=dataclasses.replace(base.consistency, model=model),
        adversarial=adversarial,
    )


def control_of(world: FilmedWorld, folder: Path, grid: tuple[int, int]) -> ControlConfig:
    """The control of models with latent frames of size `grid`, after the shape of the controls of a world."""
    if world.control is None:
        return ControlConfig(kind="maps", channels=1, entries=4)
    if len(world.control) == 3:
        height, width = grid
        size = f"maps [T, C, {height}, {width}], a value for every {CELL} x {CELL} pixels"
        require(world.control[1:] == grid, "data", size, f"[T, {', '.join(map(str, world.control))}]")
        return ControlConfig(kind="maps", channels=world.control[0], entries=4, with_previous=True)
    joints, file = world.control[0], folder / LIMBS
    if not file.exists() and joints == PERSON_CONTROL.joints:
        return PERSON_CONTROL
    require(file.exists(), "data", f"the file {LIMBS} with pairs of joints, like [[0, 1], [1, 2]]", f"none in {folder}")
    try:
        limbs = tuple((int(one), int(other)) for one, other in json.loads(file.read_text(encoding="utf-8")))
        return ControlConfig(kind="pose", joints=joints, limbs=limbs, entries=4, with_previous=True)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: expected pairs of joints below {joints}, like [[0, 1], [1, 2]]: {error}") from error
