# SPDX-License-Identifier: Apache-2.0
"""The newest of each track, as the engine takes it at every step."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from aapt_fast.models.aapt.config import ControlConfig
from aapt_fast.models.aapt.presets import NANO, NANO_TEXT, ROOMS_CONTROL
from aapt_fast.profiling.inputs import random_image
from aapt_fast.serve.live_controls import FADE, LiveControls, kind_of_control
from aapt_fast.testing.streams import random_model
from aapt_fast.worlds import WORLDS
from aapt_fast.worlds.world import FirstFrame

POSE = [[0.25 + joint / 100, 0.5, 0.0] for joint in range(19)]


@pytest.fixture(scope="module")
def model():
    return random_model(NANO, world=WORLDS["person"])


@pytest.fixture
def controls(model) -> LiveControls:
    return LiveControls(model, FirstFrame(random_image(model)), "walk", 0, 8)


def largest_move(values: torch.Tensor) -> float:
    """The largest move of a joint between two video frames, in fractions of the picture."""
    return float(values[:, :, :2].diff(dim=0).norm(dim=-1).max())


def test_an_action_plays_as_the_players_of_the_world_do(model, controls):
    player = model.world.player(FirstFrame(random_image(model)), "walk", 0)
    assert torch.equal(controls.next(4), player.next(4)) and controls.obeyed == 0
    controls.set("action", "wave", 1)
    player.play("wave")
    assert torch.equal(controls.next(4), player.next(4)) and controls.obeyed == 1


def test_the_latest_of_a_track_wins_and_a_pose_goes_first(controls):
    controls.set("pose", [[0.1, 0.1, 0.0]] * 19, 1)
    controls.set("pose", POSE, 2)
    controls.set("action", "kick", 3)
    taken = controls.next(4)
    assert taken.shape == (4, 19, 3) and controls.obeyed == 3
    assert torch.equal(taken, torch.tensor(POSE).expand(4, 19, 3))
    assert torch.equal(controls.entry, torch.tensor(POSE))


def test_an_action_fades_in_after_a_pose(controls):
    controls.next(4)
    controls.set("pose", POSE, 1)
    held = controls.next(4)
    controls.set("pose", None, 2)
    faded = torch.cat([held[-1:], controls.next(4), controls.next(4), controls.next(4)])
    jump = float((faded[-1] - held[-1])[:, :2].norm(dim=-1).max())
    assert jump > 0.1 and largest_move(faded) < jump / 2
    without = LiveControls(controls._model, controls.first, "walk", 0, 0)
    for _ in range(1 + FADE // 4):
        without.next(4)
    assert torch.equal(faded[1 + FADE :], without.next(4))  # the player has waited, and goes its own way


def test_rewind_and_fork_go_on_from_the_pose_of_that_step(controls):
    steps = [controls.next(4) for _ in range(6)]
    branch = controls.fork()
    assert largest_move(torch.cat([steps[-1][-1:], branch.next(4), branch.next(4)])) < 0.08
    controls.rewind(4)
    assert torch.equal(controls.entry, steps[1][-1])
    assert largest_move(torch.cat([steps[1][-1:], controls.next(4), controls.next(4)])) < 0.08
    controls.set("pose", POSE, 7)
    held = controls.fork()
    assert torch.equal(held.next(4), controls.next(4))


def test_a_replay_comes_first_and_ends_where_an_action_fades_in(controls):
    replay = [torch.full((4, 19, 3), 0.1), torch.full((4, 19, 3), 0.2)]
    controls.follow(replay)
    assert torch.equal(controls.next(4), replay[0]) and not controls.replay_has_ended
    assert torch.equal(controls.next(4), replay[1]) and controls.replay_has_ended
    assert largest_move(torch.cat([replay[1][-1:], controls.next(4)])) < 0.3
    controls.follow(replay)
    controls.set("pose", POSE, 1)  # a client takes over
    assert torch.equal(controls.next(4)[0], torch.tensor(POSE))


@pytest.mark.parametrize(
    ("track", "value", "message"),
    [
        ("action", "fly", "action: expected one of idle, walk"),
        ("action", [[0.0]], "action: expected a name, or null"),
        ("pose", POSE[:5], r"pose: expected numbers \[19, 3\], got \[5, 3\]"),
        ("pose", "walk", r"pose: expected numbers \[19, 3\], got str"),
        ("pose", [[1.0, 2.0], [3.0]], r"pose: expected numbers \[19, 3\], got list"),
        ("pose", [[1e30, 0.0, 0.0]] * 19, "pose: expected"),
        ("pose", [[300.0, 200.0, 0.0]] * 19, "pose: expected"),
        ("camera", [1.0], "camera: expected no such track: the control of this model is pose"),
    ],
)
def test_a_bad_value_changes_nothing(controls, track, value, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        controls.set(track, value, 5)
    controls.next(4)
    assert controls.obeyed == 0


@pytest.mark.parametrize(
    ("control", "described"),
    [
        (None, ("none", [])),
        (ControlConfig(kind="maps", channels=3), ("maps", [3, 4, 6])),
        (ControlConfig(kind="maps", channels=6), ("camera", [6])),
    ],
)
def test_kinds_of_control(model, control, described):
    assert kind_of_control(random_model(dataclasses.replace(NANO_TEXT, control=control))) == described
    assert kind_of_control(model) == ("pose", [19, 3])


def test_models_without_a_world_or_without_control():
    maps = random_model(dataclasses.replace(NANO_TEXT, control=ControlConfig(kind="maps", channels=3)))
    controls = LiveControls(maps, FirstFrame(random_image(maps)), None, 0, 4)
    assert torch.equal(controls.next(4), torch.zeros(4, 3, *maps.grid))
    controls.set("camera", [0.5, -1.0, 2.0], 1)
    taken = controls.next(4)
    assert taken.shape == (4, 3, *maps.grid) and taken[3, :, 1, 1].tolist() == [0.5, -1.0, 2.0]
    controls.set("camera", None, 2)
    assert not controls.next(4).any() and controls.obeyed == 2
    with pytest.raises(ValueError, match=r"^action: expected none: this model has none"):
        controls.set("action", "walk", 3)
    plain = random_model(NANO_TEXT)
    assert LiveControls(plain, FirstFrame(random_image(plain)), None, 0, 4).next(1) is None
    with pytest.raises(ValueError, match=r"^action: expected none"):
        LiveControls(plain, FirstFrame(random_image(plain)), "walk", 0, 4)


def test_a_hand_flies_the_camera_of_a_world_and_gives_it_back():
    """Speeds go to the player, and each cell of the maps gets a ray of its own."""
    world = WORLDS["rooms-8"]
    model = random_model(dataclasses.replace(NANO, control=ROOMS_CONTROL), world=world)
    controls = LiveControls(model, FirstFrame(random_image(model)), "stand", 0, 8)
    assert not controls.next(4).any() and controls.action == "stand"
    controls.set("camera", [0.5, 0, 1, 0, -2, 0], 1)  # a drag may be longer than full speed
    player = world.player(FirstFrame(random_image(model)), "stand", 0)
    player.next(4)
    player.steer([0.5, 0, 1, 0, -1, 0])
    taken = torch.cat([controls.next(4) for _ in range(4)])
    assert torch.equal(taken, player.next(16)) and controls.action is None and controls.obeyed == 1
    assert taken.shape == (16, 6, *model.grid) and taken[-1, 3].std() > 0.01
    controls.set("camera", None, 2)
    assert controls.action == "stand" and controls.next(24)[-1].abs().max() < 0.05
    controls.set("camera", [0, 0, 1, 0, 0, 0], 3)
    controls.set("action", "turn_left", 4)
    assert controls.action == "turn_left"
    with pytest.raises(ValueError, match=r"^camera: expected numbers \[6\], got \[2\]"):
        controls.set("camera", [1.0, 2.0], 5)
