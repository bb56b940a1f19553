# SPDX-License-Identifier: Apache-2.0
"""The names that the command line offers are those of the tables behind it."""

from __future__ import annotations

from aapt_fast.cli import choices
from aapt_fast.models.aapt.presets import GENERATORS
from aapt_fast.models.files.bundled import PRESETS
from aapt_fast.models.files.convert import SHARD_BYTES
from aapt_fast.ops.kernels import KERNELS
from aapt_fast.profiling.frame import FEWEST_STEPS, FRAMES_PER_STEP
from aapt_fast.profiling.systems import find_system
from aapt_fast.training import own_videos
from aapt_fast.training.evaluate import MIRROR_FROM
from aapt_fast.training.recipes import HELD_OUT, HELD_OUT_SETS, RECIPES
from aapt_fast.worlds import WORLDS
from aapt_fast.worlds.person.skeleton import JOINTS
from aapt_fast.worlds.world import MEDLEY, PART_FRAMES


def test_worlds() -> None:
    assert WORLDS[choices.WORLD].actions == choices.ACTIONS
    assert (choices.MEDLEY, choices.PART_FRAMES) == (MEDLEY, PART_FRAMES)
    assert len(JOINTS) == choices.JOINTS


def test_models() -> None:
    assert tuple(GENERATORS) == PRESETS
    assert choices.SHARD_GIB * 2**30 == SHARD_BYTES


def test_training() -> None:
    assert (tuple(RECIPES), own_videos.NAME) == (choices.RECIPES, choices.OWN)
    assert tuple(name for name, recipe in RECIPES.items() if recipe.start) == choices.STARTED_RECIPES
    assert tuple(KERNELS) == choices.KERNELS
    assert {find_system(name).vae.spatial_factor * config.patch for name, config in GENERATORS.items()} == {
        choices.SIDE_MULTIPLE
    }
    assert {name: recipe.name for name, recipe in RECIPES.items()} == choices.MODEL_NAMES
    assert {recipe.start for recipe in RECIPES.values() if recipe.start} == {choices.DEFAULT_START}
    assert tuple(HELD_OUT_SETS) == choices.HELD_OUT_SETS
    assert (HELD_OUT.clips, HELD_OUT.frames - 1) == (choices.HELD_OUT_CLIPS, choices.HELD_OUT_FRAMES)


def test_measurements() -> None:
    steps = -(-MIRROR_FROM // FRAMES_PER_STEP)  # the first that reach beyond, with the frame before them
    assert FRAMES_PER_STEP * (steps - 1) + 1 == choices.LEAST_FRAMES
    assert (choices.FEWEST_STEPS, choices.FRAMES_PER_STEP) == (FEWEST_STEPS, FRAMES_PER_STEP)
