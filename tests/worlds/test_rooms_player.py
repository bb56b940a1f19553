# SPDX-License-Identifier: Apache-2.0
"""Players of the rooms world: actions, speeds from a hand, and medleys."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from aapt_fast import FirstFrame
from aapt_fast.worlds.rooms.camera import control_maps, read_maps, turn_angles
from aapt_fast.worlds.rooms.house import make_house
from aapt_fast.worlds.rooms.policy import guided_poses
from aapt_fast.worlds.rooms.sight import decided_house, known_at_first, out_of_sight
from aapt_fast.worlds.rooms.walker import FASTEST, Walker, is_free
from aapt_fast.worlds.rooms.world import RoomsWorld
from aapt_fast.worlds.world import FPS, Player, SteeredPlayer

WORLD, SIZE = RoomsWorld(), 32
STRANGER = FirstFrame(np.zeros((SIZE, SIZE, 3), np.uint8))


def first():
    return WORLD.first_frame(1, 4, SIZE)


def motion(player: Player, frames: int = 24) -> torch.Tensor:
    """Speeds [6] (right, up, forwards, yaw, pitch, roll) over the last of some video frames."""
    moved, turned = read_maps(player.next(frames)[frames - 6 :])
    return torch.cat([moved, turn_angles(turned)], dim=1).mean(0) * FPS


@pytest.mark.parametrize(
    ("action", "axis", "speed"),
    [
        ("forward", 2, FASTEST[2]), ("back", 2, -FASTEST[2]), ("left", 0, -FASTEST[0]), ("right", 0, FASTEST[0]),
        ("turn_left", 3, -FASTEST[4]), ("turn_right", 3, FASTEST[4]),
    ],
)  # fmt: skip
def test_actions_move_the_camera(action, axis, speed):
    found = motion(WORLD.player(STRANGER, action))
    assert abs(found[axis] - speed) < 0.02
    found[axis] = 0
    assert found.abs().max() < 0.02


@pytest.mark.parametrize(("action", "sign"), [("look_up", 1), ("look_down", -1)])
def test_looking_up_and_down_ends(action, sign):
    player = WORLD.player(STRANGER, action)
    assert sign * motion(player, 12)[4] > 0.5
    assert motion(player, 24).abs().max() < 0.01


def test_a_camera_that_stands_has_maps_of_zeros():
    assert WORLD.player(first(), "stand").next(8).abs().max() < 1e-5


def test_a_script_is_played_and_play_leaves_it():
    player = WORLD.player(STRANGER, "turn_left:24,stand:24,turn_right")
    assert motion(player)[3] < -1 and abs(motion(player)[3]) < 0.02 and motion(player)[3] > 1
    player.play("stand")
    assert abs(motion(player)[3]) < 0.02 and "stand now, 96 video frames so far" in repr(player)


def test_a_hand_steers():
    player = WORLD.player(STRANGER, "stand")
    assert isinstance(player, SteeredPlayer)
    player.steer([0.5, 0, 1, 0, -1, 0])
    found = motion(player)
    assert found[3] < -1.2 and found[2] > 1
    player.play("stand")
    assert motion(player).abs().max() < 0.02


def test_a_medley_is_the_data_policy():
    start = first()
    house = make_house(start.scene)
    poses, _ = guided_poses(Walker(house, start.pose), 9, 25)
    player = WORLD.player(start, seed=9)
    found = torch.cat([player.next(4) for _ in range(6)])
    assert torch.equal(found, control_maps(poses, 2)[1:])
    assert (WORLD.player(STRANGER, seed=3).next(48)[:, 3].abs() > 0.3).any()


def test_the_truth_of_a_player_is_what_its_clip_shows():
    start, clip = WORLD.first_frame(0, 3, SIZE), WORLD.clip(0, 3, 9, SIZE)
    seed = 1_000_000_007 + 3
    player = WORLD.player(start, seed=seed)
    controls = player.next(8)
    assert (controls - clip.controls[1:]).abs().max() < 1e-3  # the pose of a first frame is rounded
    difference = (player.truth(SIZE) * 255 - clip.video[1:].permute(0, 3, 1, 2)).abs()
    assert difference.mean() < 0.5
    assert WORLD.player(STRANGER).truth(SIZE) is None


def test_walls_stop_the_camera_where_the_house_is_known():
    player = WORLD.player(first(), "forward")
    player.next(240)
    assert motion(player).abs().max() < 0.02
    assert motion(WORLD.player(STRANGER, "forward"), 240)[2] > 1


def test_only_things_in_the_first_picture_stop_a_person():
    """A thing behind the camera, which differs from future to future, does not; in a medley all do, as in clips."""
    start = first()
    house, pose = make_house(start.scene), np.array(start.pose)
    closed = np.tile(np.array([0.0, 1.0]), (len(house.plan.doors), 1))
    decided = decided_house(house, pose, closed, WORLD.camera)
    kept = {id(thing) for room in decided.rooms for thing in room.things}
    things = [(number, thing) for number, room in enumerate(house.rooms) for thing in room.things if thing.solid]
    assert {id(thing) in kept for _, thing in things} == {True, False}
    hides = out_of_sight(pose, WORLD.camera)
    seen = known_at_first(house, pose[None], closed, WORLD.camera).rooms
    for number, thing in things:
        middle = (thing.low + thing.high)[[0, 2]] / 2
        assert not is_free(house, middle, margin=0.01)
        shown = number in seen and not hides(thing.low, thing.high)
        assert is_free(decided, middle, margin=0.01) != shown
    player = WORLD.player(start, seed=9)
    player.next(4)
    assert player._walker.house is not decided and id(player._walker.house.rooms[0]) == id(player._house.rooms[0])
    player.steer([0, 0, 1, 0, 0, 0])
    player.next(4)
    assert sum(len(room.things) for room in player._walker.house.rooms) == len(kept)
    assert player.truth(SIZE) is not None
    player.play("stand")
    assert motion(player).abs().max() < 0.02


def test_controls_have_the_grid_of_the_picture_or_of_its_control():
    assert WORLD.player(STRANGER).next(1).shape == (1, 6, 2, 2)
    known = FirstFrame(np.zeros((50, 70, 3), np.uint8), torch.zeros(6, 5, 5))
    assert WORLD.player(known).next(3).shape == (3, 6, 5, 5) and WORLD.player(known).next(0).shape == (0, 6, 5, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda player: player.play("fly"), "action: expected forward"),
        (lambda player: player.steer([0, 0, 1]), "speeds: expected 6 numbers in -1..1"),
        (lambda player: player.steer([0, 0, 2, 0, 0, 0]), "speeds: expected 6 numbers in -1..1"),
        (lambda player: player.next(-1), "frames: expected 0 or more, got -1"),
        (lambda player: WORLD.player(STRANGER, "walk"), "script: expected forward"),
        (lambda player: WORLD.player(STRANGER, seed=2**70), "seed: expected a signed 64-bit integer"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(WORLD.player(STRANGER))


def test_bad_types():
    with pytest.raises(TypeError, match="frames: expected an integer, got float"):
        WORLD.player(STRANGER).next(2.0)
    with pytest.raises(TypeError, match="first: expected FirstFrame"):
        WORLD.player(np.zeros((SIZE, SIZE, 3), np.uint8))
    with pytest.raises(TypeError, match="cannot be copied"):
        copy.copy(WORLD.player(STRANGER))
