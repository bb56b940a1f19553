# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from aapt_fast.training import stages
from aapt_fast.training.own_folder import TRIAL
from aapt_fast.training.plan import describe_plan, stage_config
from aapt_fast.training.recipe_folder import note_recipe
from aapt_fast.training.recipes import ANYONE, PERSON, RECIPES, Recipe
from aapt_fast.training.run import Watch
from aapt_fast.training.trial import trial_of


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_trial_has_the_stages_of_its_recipe_with_few_clips_and_steps(recipe: Recipe) -> None:
    trial = trial_of(recipe)
    assert trial.strangers.clips + trial.gallery.clips == 16 and trial.name == recipe.name + TRIAL
    for stage in stages.STAGES:
        few, full = stage_config(trial, stage), stage_config(recipe, stage)
        assert (few is None) == (full is None)
        if few is not None:
            assert few.steps <= 30 < full.steps and not getattr(few, "compile", False)
            assert (few.model, few.batch) == (full.model, full.batch)
    assert 0 < trial.adversarial.discriminator_alone < trial.adversarial.steps
    longest = trial.adversarial.segments * trial.adversarial.segment_frames
    assert longest <= (trial.gallery.frames - 1) // 4  # a gallery of so few clips has no two of one scene to chain


def test_the_plan_of_a_trial_says_that_its_model_is_good_for_nothing(tmp_path: Path) -> None:
    trial, whole = (describe_plan(recipe, tmp_path, ("codec",)).splitlines() for recipe in (trial_of(PERSON), PERSON))
    assert "its model is good for nothing else" in trial[1] and "a trial" not in "".join(whole)


def test_a_trial_and_a_training_do_not_share_a_folder(tmp_path: Path) -> None:
    trial, named = trial_of(PERSON), "recipe mini-person from nothing"
    for there, asked, expected, got in (
        (trial, PERSON, named, f"a trial of {named}"),
        (PERSON, trial, f"a trial of {named}", named),
    ):
        note_recipe(there, tmp_path)
        message = f"^out: expected a new folder or one of {expected}, got .*, which holds {got}$"
        with pytest.raises(ValueError, match=message):
            stages.train(asked, tmp_path, ("codec",))


def test_every_stage_is_announced_when_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []

    def take(run: stages.RecipeRun, stage: str, watch: Watch) -> None:
        said.append(capsys.readouterr().err.splitlines()[-1])

    monkeypatch.setattr(stages.RecipeRun, "take", take)
    stages.train(trial_of(PERSON), tmp_path, ("codec", "diffusion"))
    assert said == ["stage 1 of 2: codec begins", "stage 2 of 2: diffusion begins"]


def test_no_clips_are_planned_for_stages_that_train_nothing(tmp_path: Path) -> None:
    assert "  clips: " not in describe_plan(ANYONE, tmp_path, ("codec", "export"))
    assert "  clips: " in describe_plan(ANYONE, tmp_path, ("codec", "diffusion"))
