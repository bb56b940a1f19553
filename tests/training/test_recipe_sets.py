# SPDX-License-Identifier: Apache-2.0
"""The clip sets of all recipes: what is held out was never trained on, and what is known was."""

from __future__ import annotations

import pytest

from aapt_fast.training import recipes
from aapt_fast.training.recipes import Recipe
from aapt_fast.worlds.person.world import PersonWorld
from aapt_fast.worlds.rooms.world import RoomsWorld
from aapt_fast.worlds.world import clip_seed

TRAINED = ("strangers", "gallery", "held_out_strangers", "held_out_gallery", "first_frames")


def known_scenes(world: PersonWorld | RoomsWorld) -> int:
    """The number of scenes that clips of `world` share; 0 where each has its own."""
    return world.houses if isinstance(world, RoomsWorld) else world.identities


@pytest.mark.parametrize("recipe", recipes.RECIPES.values(), ids=recipes.RECIPES)
def test_held_out_motions_are_held_out_and_persons_are_known(recipe: Recipe) -> None:
    trained = {clip_seed(each.seed, clip) for each in (recipe.strangers, recipe.gallery) for clip in range(each.clips)}
    held_out = (recipe.held_out_strangers, recipe.held_out_gallery, recipe.first_frames, *recipe.held_out)
    assert not trained & {clip_seed(each.seed, clip) for each in held_out for clip in range(each.clips)}
    seen = {each.scene(clip) for each in (recipe.strangers, recipe.gallery) for clip in range(each.clips)}
    unseen = [each for each in held_out if known_scenes(each.world) == 0]
    assert unseen and not seen & {each.scene(clip) for each in unseen for clip in range(each.clips)}
    known = {recipe.gallery.scene(clip) for clip in range(recipe.gallery.clips)}
    assert known == set(range(known_scenes(recipe.gallery.world)))
    assert known >= {each.scene(clip) for each in held_out if known_scenes(each.world) for clip in range(each.clips)}
    sets = [*(getattr(recipe, name) for name in TRAINED), *recipe.held_out]
    assert len({each.name for each in sets}) == len(sets) and len({each.world.name for each in sets}) == 1
