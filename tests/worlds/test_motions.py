# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from aapt_fast.testing.compare import assert_near
from aapt_fast.worlds.person.motions import MOTIONS, make_motion
from aapt_fast.worlds.person.players import FADE, MedleyPlayer, MotionPlayer, random_motion
from aapt_fast.worlds.person.skeleton import ANGLE, ANGLES, JOINT, SOLE, Camera, forward_kinematics

NAMES = list(MOTIONS)
POSED = [index for name, index in ANGLE.items() if name != "shift"]  # what a motion says; the drift says the rest


def largest_jump(angles: torch.Tensor) -> float:
    """How far any joint moves from one video frame to the next, in metres."""
    joints = forward_kinematics(angles)
    return float((joints[1:] - joints[:-1]).norm(dim=-1).max())


@pytest.fixture
def steady(monkeypatch):
    """Three motions that hold every angle at 0, 1 and 2; counts how often any of them is evaluated."""
    evaluations = []

    def holding(value: float):
        def motion(t: torch.Tensor) -> torch.Tensor:
            evaluations.append(value)
            return torch.full((len(t), len(ANGLES)), value)

        return lambda dice: motion

    for name, value in (("zero", 0.0), ("one", 1.0), ("two", 2.0)):
        monkeypatch.setitem(MOTIONS, name, holding(value))
    return evaluations


def eased(share: float) -> float:
    return share * share * (3 - 2 * share)


@pytest.mark.parametrize("name", NAMES)
def test_motion_is_finite_and_inside_the_frame(name):
    angles = torch.cat([MotionPlayer(name, seed).next(96) for seed in range(12)])
    points = Camera().project(forward_kinematics(angles))
    assert points.isfinite().all()
    trunk = points[..., [JOINT[joint] for joint in ("pelvis", "chest", "neck", "head")], :2]
    assert trunk.min() > 0.05 and trunk.max() < 0.95
    outside = ((points[..., :2] < 0) | (points[..., :2] > 1)).any(-1)
    assert outside.float().mean() < 0.01  # a kicking toe may leave for a moment


@pytest.mark.parametrize("name", NAMES)
def test_motion_stands_on_the_floor_and_only_a_jump_leaves_it(name):
    joints = forward_kinematics(MotionPlayer(name, 3).next(96))
    height = joints[:, [JOINT["left_foot"], JOINT["right_foot"]], 1].min(1).values - SOLE
    assert height.min() > -1e-5
    assert (height.max() > 0.05) == (name == "jump")


@pytest.mark.parametrize("name", NAMES)
def test_motion_moves_and_depends_on_the_seed(name):
    angles, other = MotionPlayer(name, 1).next(96), MotionPlayer(name, 2).next(96)
    assert angles.std(0)[POSED].max() > 0.01
    assert not torch.allclose(angles, other, atol=1e-3)
    assert 0.001 < largest_jump(angles) < 0.3


def test_motions_differ_from_each_other():
    poses = torch.stack([MotionPlayer(name, 0).next(48) for name in NAMES]).flatten(1)
    distances = torch.cdist(poses, poses) + torch.eye(len(NAMES)) * 100
    assert distances.min() > 1


def test_player_gives_the_same_poses_in_any_portions():
    whole, portions = MotionPlayer("dance", 5), MotionPlayer("dance", 5)
    whole.play("squat")
    portions.play("squat")
    assert_near(torch.cat([portions.next(n) for n in (1, 4, 2, 17)]), whole.next(24), 2e-6, "angles")


def test_fade_follows_the_eased_curve_and_ends(steady):
    player = MotionPlayer("zero")
    player.next(3)
    player.play("one")
    angles = player.next(FADE + 2)[:, POSED]
    expected = [eased(min((frame + 1) / FADE, 1.0)) for frame in range(FADE + 2)]
    assert_near(angles, torch.tensor(expected)[:, None].expand_as(angles), 1e-6, "angles")


def test_asked_during_a_fade_the_player_fades_on_from_the_mixture(steady):
    player = MotionPlayer("zero")
    player.play("one")
    player.next(4)
    player.play("two")
    angles = player.next(FADE)[:, POSED[0]]
    mixture = [eased(min((frame + 5) / FADE, 1.0)) for frame in range(FADE)]
    shares = [eased((frame + 1) / FADE) for frame in range(FADE)]
    expected = torch.tensor([2 * share + (1 - share) * mixed for share, mixed in zip(shares, mixture, strict=True)])
    assert_near(angles, expected, 1e-6, "angles")


def test_a_held_start_is_still_and_then_fades_as_ever(steady):
    start = torch.full((17,), 5.0)
    held, at_once = MotionPlayer("two", start=start, hold=4), MotionPlayer("two", start=start)
    angles = torch.cat([held.next(3), held.next(FADE + 1)])[:, POSED]
    assert_near(angles[:4], start[POSED].expand(4, -1), 1e-6, "angles")
    assert_near(angles[4:], at_once.next(FADE)[:, POSED], 1e-6, "angles")
    assert 2.0 in steady


def test_the_latest_wish_of_a_frame_wins(steady):
    player = MotionPlayer("zero")
    player.next(1)
    player.play("two")
    player.play("one")
    assert_near(player.next(FADE)[-1, POSED], torch.ones(len(POSED)), 1e-6, "angles")
    assert 2.0 not in steady


def test_hasty_switching_stays_cheap(steady):
    player = MotionPlayer("zero")
    for number in range(50):
        player.play(("one", "two")[number % 2])
        steady.clear()
        player.next(1)
        assert len(steady) <= FADE + 1


def test_fades_are_continuous_where_cuts_are_not():
    cuts = torch.cat([MotionPlayer(name, 7).next(12) for name in NAMES])
    player, faded = MotionPlayer(NAMES[0], 7), []
    for name in NAMES:
        player.play(name)
        faded.append(player.next(12))
    assert largest_jump(torch.cat(faded)) < 0.5 < 0.9 < largest_jump(cuts)


@pytest.mark.parametrize("hold", [1, 3])
def test_hasty_switching_never_jumps(hold):
    player, angles = MotionPlayer("idle", 1), []
    for number in range(60):
        player.play(NAMES[number * 3 % len(NAMES)])
        angles.append(player.next(hold))
    assert largest_jump(torch.cat(angles)) < 0.6


def test_start_pose_is_left_smoothly_and_then_forgotten():
    start = MotionPlayer("bow", 9).next(1)[0]
    angles, free = MotionPlayer("jump", 4, start).next(24), MotionPlayer("jump", 4).next(24)
    assert_near(angles[FADE:], free[FADE:], 1e-6, "after the fade")
    share = eased(1 / FADE)
    assert_near(angles[0], free[0] * share + start * (1 - share), 1e-6, "first pose")
    assert largest_jump(torch.cat([start[None], angles])) < 0.5


def test_random_motion_is_reproducible_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    angles = random_motion(150, seed=11)
    assert angles.shape == (150, len(ANGLES))
    assert torch.equal(angles, random_motion(150, seed=11))
    assert not torch.allclose(angles, random_motion(150, seed=12), atol=1e-2)
    assert_near(random_motion(61, seed=11), angles[:61], 2e-6, "a shorter one is the beginning of a longer one")
    assert torch.equal(torch.get_rng_state(), before)


def test_random_motion_changes_motions_without_jumps():
    angles = torch.stack([random_motion(160, seed) for seed in range(6)])
    assert max(largest_jump(each) for each in angles) < 0.55
    assert angles.std(1)[:, ANGLE["heading"]].max() > 0.2  # headings are drawn per motion


def test_unknown_motion_lists_the_vocabulary_and_changes_nothing():
    with pytest.raises(ValueError, match=r"motion: expected idle \| walk .* bow \(.*, got moonwalk"):
        make_motion("moonwalk", torch.Generator())
    player, twin = MotionPlayer("idle", 2), MotionPlayer("idle", 2)
    with pytest.raises(ValueError, match="motion: expected"):
        player.play("moonwalk")
    player.play("kick")
    twin.play("kick")
    assert torch.equal(player.next(20), twin.next(20))


@pytest.mark.parametrize("kind", [tuple, list, np.array, torch.tensor, lambda pose: torch.tensor(pose).double()])
def test_a_start_is_any_sequence_of_numbers(kind):
    pose = [index / 16 for index in range(17)]
    start = torch.tensor(pose)
    player = MotionPlayer("walk", start=kind(pose), hold=2)
    assert torch.equal(player.next(12), MotionPlayer("walk", start=start, hold=2).next(12))
    assert torch.equal(random_motion(12, 3, kind(pose)), random_motion(12, 3, start))


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ([0.0] * 16, r"start: expected 17 numbers, as skeleton.ANGLES names them, got torch.float64 of shape \[16\]"),
        (torch.zeros(1, 17), r"start: expected 17 numbers.* got torch.float32 of shape \[1, 17\]"),
        (torch.zeros(17, dtype=torch.complex64), "start: expected 17 numbers.* got torch.complex64"),
        ("walk", "start: expected 17 numbers.* got str"),
        ([0.0, [1.0]], "start: expected 17 numbers.* got list"),
        ([None] * 17, "start: expected 17 numbers.* got list"),
        ([float("nan")] * 17, "start: expected finite numbers, got nan or inf"),
        (0.0, "start: expected 17 numbers"),
    ],
)
def test_a_start_that_is_no_pose(start, message):
    with pytest.raises(ValueError, match=message):
        MotionPlayer("walk", start=start)


def test_only_forwards():
    player, twin = MotionPlayer("dance", 1), MotionPlayer("dance", 1)
    for each in (player, MedleyPlayer(1)):
        with pytest.raises(ValueError, match="frames: expected 0 or more, got -1"):
            each.next(-1)
    assert player.next(0).shape == (0, len(ANGLES))
    assert torch.equal(player.next(8), twin.next(8))


def test_a_medley_is_no_motion():
    with pytest.raises(ValueError, match=r'bow \(a medley .* model.world.player\(first, "medley"\)\), got medley'):
        MotionPlayer("medley")


@pytest.mark.parametrize("portion", [1, 4, 24])
def test_a_medley_gives_the_same_poses_in_any_portions(portion):
    player = MedleyPlayer(11, hold=4)
    portions = torch.cat([player.next(portion) for _ in range(240 // portion)])
    assert_near(portions, MedleyPlayer(11, hold=4).next(240), 2e-6, "angles")


def test_a_medley_is_what_it_was():
    """Data sets are made of it: seeds must go on meaning the same motions."""
    angles = torch.stack([random_motion(200, seed) for seed in (0, 7, 123456)])
    expected = [807.72056, 563.34081, 426.88751]
    assert_near(angles.double().sum((1, 2)), torch.tensor(expected, dtype=torch.float64), 1e-3, "sums")
