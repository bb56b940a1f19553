# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from aapt_fast import limits
from aapt_fast.training import plan
from aapt_fast.training.data import clip_rows
from aapt_fast.training.files import save_finite
from aapt_fast.training.own_folder import STAGES
from aapt_fast.training.plan import describe_plan, describe_state, require_room
from aapt_fast.training.recipes import ANYONE, PERSON, RECIPES, Recipe

SHORT = dataclasses.replace(
    PERSON,
    strangers=dataclasses.replace(PERSON.strangers, clips=4, frames=5, size=32),
    gallery=dataclasses.replace(PERSON.gallery, clips=4, frames=5, size=32),
    minutes={"render": 8, "diffusion": 50},
    measured="somewhere",
)


def begin(out: Path) -> None:
    """Two of eight clips, and the first half of stage 1."""
    rows = clip_rows(out / "data", SHORT.gallery)
    shapes = {key: np.zeros(shape, dtype) for key, (dtype, shape) in rows.arrays.items()}
    for row in rows.begin()[:2]:
        rows.write(row, **shapes)
    (out / "diffusion").mkdir()
    save_finite(out / "diffusion" / "checkpoint.pt", {"step": PERSON.diffusion.steps // 2})


def test_the_plan_tells_what_is_done_and_how_long_the_rest_took_once(tmp_path: Path) -> None:
    begin(tmp_path)
    lines = describe_plan(SHORT, tmp_path, ("codec", "diffusion", "export")).splitlines()
    assert lines == [
        f"train mini-person in {tmp_path}:",
        "  clips: 0 of 4 of open and 2 of 4 of gallery are rendered, about 6 min *",
        "  stage 1 of 3: codec: 0 of 3600 steps are done",
        "  stage 2 of 3: diffusion: 2500 of 5000 steps are done, about 25 min *",
        "  stage 3 of 3: export: made anew",
        "* 31 min in all, from the times of a run somewhere; yours will differ",
    ]


def test_more_steps_than_the_recipe_has_leave_no_time(tmp_path: Path) -> None:
    begin(tmp_path)
    save_finite(tmp_path / "diffusion" / "checkpoint.pt", {"step": 2 * PERSON.diffusion.steps})
    lines = describe_plan(SHORT, tmp_path, ("diffusion",)).splitlines()
    assert lines[2] == "  stage 1 of 1: diffusion: 10000 of 5000 steps are done"
    assert lines[3].startswith("* 6 min in all")


def test_a_plan_invents_no_times_and_asks_for_no_clips_in_vain(tmp_path: Path) -> None:
    assert " min" not in describe_plan(dataclasses.replace(SHORT, name="x", minutes={}), tmp_path, ("codec",))
    assert "clips" not in describe_plan(SHORT, tmp_path, ("export", "evaluate"))
    described = describe_plan(ANYONE, tmp_path, ("codec", "pretrain"))
    assert "codec: taken from mini-person" in described and "pretrain: not part of this recipe" in described
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_times_are_those_of_stages(recipe: Recipe) -> None:
    assert set(recipe.minutes) <= {"render", *STAGES} and bool(recipe.measured or not recipe.minutes)


def test_the_state_is_read_from_the_disk(tmp_path: Path) -> None:
    begin(tmp_path)
    state = describe_state(SHORT, tmp_path, "diffusion")
    clips = "clips: 0 of 4 of open and 2 of 4 of gallery are rendered"
    assert state == f"{tmp_path}/diffusion/checkpoint.pt holds the state after step 2500, all finite; {clips}"
    assert describe_state(SHORT, tmp_path, "codec") == f"{tmp_path}/codec has no checkpoint; {clips}"
    assert describe_state(SHORT, tmp_path, "evaluate") == f"finished stages are in {tmp_path}"
    torch.save({"step": torch.tensor(torch.nan)}, tmp_path / "diffusion" / "checkpoint.pt")
    assert "checkpoint.pt: step: expected finite values" in describe_state(SHORT, tmp_path, "diffusion")


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"gallery": {"clips": 10**12}}, "clips, frames and size of the training sets"),
        ({"strangers": {"frames": 4 * 10**12 + 1}}, "clips, frames and size of the training sets"),
        ({"codec": {"crop": 10**9}}, "batch and crop of stage codec"),
        ({"pretrain": {"batch": 10**12}}, "batch and frames of stage pretrain"),
        ({"diffusion": {"clip_frames": 10**12}}, "batch and frames of stage diffusion"),
        ({"consistency": {"batch": 10**12}}, "batch and frames of stage consistency"),
        ({"adversarial": {"segment_frames": 10**12}}, "batch and frames of stage reconstruction"),
    ],
    ids=str,
)
def test_numbers_that_fit_no_machine_are_refused_before_work(change: dict, argument: str, tmp_path: Path) -> None:
    parts = {name: dataclasses.replace(getattr(SHORT, name), **fields) for name, fields in change.items()}
    with pytest.raises(ValueError, match=f"^{argument}: expected a value that fits into .*, got one that needs"):
        require_room(dataclasses.replace(SHORT, **parts), tmp_path, STAGES)
    assert list(tmp_path.iterdir()) == []


def test_a_set_whose_room_is_taken_already_needs_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is no reason against resuming."""
    require_room(SHORT, tmp_path, STAGES)
    for config in (SHORT.gallery, SHORT.strangers):
        rows = clip_rows(tmp_path / "data", config)
        rows.begin()
        rows.finish()
    monkeypatch.setattr(limits.shutil, "disk_usage", lambda path: pytest.fail("looked at the disk"))
    require_room(SHORT, tmp_path, STAGES)
    assert plan.stage_config(SHORT, "export") is None
