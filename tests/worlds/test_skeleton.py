# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch

from aapt_fast.testing.compare import assert_near
from aapt_fast.worlds.person.motions import MOTIONS
from aapt_fast.worlds.person.players import MotionPlayer
from aapt_fast.worlds.person.skeleton import (
    ANGLE,
    ANGLES,
    FOREARM,
    HIP_HALF,
    JOINT,
    JOINTS,
    LIMBS,
    NOSE,
    SHIN,
    SHOULDER_HALF,
    SKULL,
    SOLE,
    THIGH,
    TORSO,
    UPPER_ARM,
    Camera,
    draw_skeleton,
    forward_kinematics,
    limb_colours,
    mirror,
)

ARM_AND_LEG = {
    ("shoulder", "elbow"): UPPER_ARM,
    ("elbow", "hand"): FOREARM,
    ("hip", "knee"): THIGH,
    ("knee", "foot"): SHIN,
    ("foot", "toe"): math.hypot(0.03, 0.15),
}
LENGTHS = {
    ("left_shoulder", "right_shoulder"): 2 * SHOULDER_HALF,
    ("left_hip", "right_hip"): 2 * HIP_HALF,
    ("head", "nose"): NOSE,
    **{(f"{side}_{a}", f"{side}_{b}"): d for (a, b), d in ARM_AND_LEG.items() for side in ("left", "right")},
}
SPINE = {("pelvis", "chest"): TORSO, ("neck", "head"): SKULL}


def random_poses(count: int = 300) -> torch.Tensor:
    """Poses [N, 17] far beyond what a motion does; nobody is lifted or shifted by more than a metre or so."""
    return torch.randn(count, len(ANGLES)) * 0.8


def pose(**angles: float) -> torch.Tensor:
    """One pose [1, 17], zero but for the named angles."""
    result = torch.zeros(1, len(ANGLES))
    for name, value in angles.items():
        result[0, ANGLE[name]] = value
    return result


def joint(joints: torch.Tensor, name: str) -> torch.Tensor:
    return joints[:, JOINT[name]]


def length(joints: torch.Tensor, limb: tuple[str, str]) -> torch.Tensor:
    return (joint(joints, limb[0]) - joint(joints, limb[1])).norm(dim=-1)


def test_the_lengths_below_cover_every_limb():
    assert {(JOINT[a], JOINT[b]) for a, b in [*LENGTHS, *SPINE]} == set(LIMBS)


@pytest.mark.parametrize("limb", LENGTHS, ids="-".join)
def test_limb_length_is_the_same_in_every_pose(limb):
    lengths = length(forward_kinematics(random_poses()), limb)
    assert_near(lengths, torch.full_like(lengths, LENGTHS[limb]), 2e-6, "length")


@pytest.mark.parametrize("fixed", ["bow", "tilt"])
@pytest.mark.parametrize("limb", SPINE, ids="-".join)
def test_spine_keeps_its_length_when_bent_one_way(limb, fixed):
    poses = random_poses()
    poses[:, ANGLE[fixed]] = 0
    lengths = length(forward_kinematics(poses), limb)
    assert_near(lengths, torch.full_like(lengths, SPINE[limb]), 2e-6, "length")


@pytest.mark.parametrize("limb", SPINE, ids="-".join)
def test_spine_keeps_its_length_in_every_motion_and_fade(limb):
    player = MotionPlayer("idle")
    poses = []
    for name in [*MOTIONS, "dance", "bow"]:
        player.play(name)
        poses.append(player.next(40))
    lengths = length(forward_kinematics(torch.cat(poses)), limb)
    # bow and tilt together stretch it a little
    assert_near(lengths, torch.full_like(lengths, SPINE[limb]), 2e-3, "length")


def test_standing_pose():
    joints = forward_kinematics(pose())
    pelvis = SOLE + 0.04 + (THIGH + SHIN) * math.cos(0.03)
    expected = {
        "pelvis": (0, pelvis, 0),
        "head": (0, pelvis + 0.77, 0),
        "nose": (0, pelvis + 0.77, NOSE),
        "left_hand": (-SHOULDER_HALF, pelvis + 0.49 - UPPER_ARM - FOREARM, 0),
        "right_foot": (HIP_HALF + (THIGH + SHIN) * math.sin(0.03), SOLE, 0),
    }
    for name, position in expected.items():
        assert_near(joint(joints, name)[0], torch.tensor(position), 1e-6, name)


@pytest.mark.parametrize(
    ("angles", "name", "offset"),
    [
        (dict(left_arm_raise=math.pi / 2), "left_elbow", (-UPPER_ARM, 0, 0)),
        (dict(right_arm_raise=math.pi / 2), "right_elbow", (UPPER_ARM, 0, 0)),
        (dict(right_arm_swing=math.pi / 2), "right_elbow", (0, 0, UPPER_ARM)),
        (dict(left_arm_swing=-math.pi / 2), "left_elbow", (0, 0, -UPPER_ARM)),
    ],
    ids=["left raised", "right raised", "right forwards", "left backwards"],
)
def test_directions_of_the_arms(angles, name, offset):
    joints = forward_kinematics(pose(**angles))
    shoulder = joint(joints, name.replace("elbow", "shoulder"))
    assert_near(joint(joints, name) - shoulder, torch.tensor([offset]), 1e-6, name)


def test_bow_and_swing_go_towards_the_camera_and_knees_bend_away():
    joints = forward_kinematics(pose(bow=0.5, left_leg_swing=0.5, right_knee=1.0))
    assert joint(joints, "head")[0, 2] > 0.3 and joint(joints, "left_knee")[0, 2] > 0.2
    assert joint(joints, "right_foot")[0, 2] < -0.3


def test_lower_foot_stands_on_the_floor_unless_lifted():
    poses = random_poses()
    joints = forward_kinematics(poses)
    lower = torch.minimum(joint(joints, "left_foot")[:, 1], joint(joints, "right_foot")[:, 1])
    assert_near(lower, SOLE + poses[:, ANGLE["lift"]], 2e-6, "height of the lower foot")


def test_lift_and_shift_move_the_whole_body():
    poses = random_poses()
    moved = poses.clone()
    moved[:, ANGLE["lift"]] += 0.2
    moved[:, ANGLE["shift"]] -= 0.3
    offset = torch.tensor([-0.3, 0.2, 0.0])
    assert_near(forward_kinematics(moved), forward_kinematics(poses) + offset, 2e-6, "joints")


def test_heading_turns_the_face_to_the_right_of_the_picture_and_keeps_heights():
    front, side = forward_kinematics(pose()), forward_kinematics(pose(heading=math.pi / 2))
    assert_near(joint(side, "nose") - joint(side, "head"), torch.tensor([[NOSE, 0, 0]]), 1e-6, "nose")
    assert_near(side[..., 1], front[..., 1], 1e-6, "heights")


def test_mirror_is_an_involution():
    poses = random_poses()
    assert not torch.equal(mirror(poses), poses)
    assert torch.equal(mirror(mirror(poses)), poses)


def test_mirror_reflects_every_joint_onto_its_partner():
    poses = random_poses()
    partner = [name.replace("left", "#").replace("right", "left").replace("#", "right") for name in JOINTS]
    reflected = forward_kinematics(poses)[:, [JOINT[name] for name in partner]] * torch.tensor([-1.0, 1.0, 1.0])
    assert_near(forward_kinematics(mirror(poses)), reflected, 2e-6, "joints")


@pytest.mark.parametrize(
    ("position", "point"),
    [
        ((0.0, 0.92, 0.0), (0.5, 0.52, 0.0)),  # on the axis: the horizon
        ((0.0, 0.92, 1.2), (0.5, 0.52, -1.2)),  # nearer, still on the axis
        ((1.0, 0.92, 0.0), (0.5 + 134 / 96 / 3.2, 0.52, 0.0)),  # right of it
        ((0.0, 1.92, 0.0), (0.5, 0.52 - 134 / 96 / 3.2, 0.0)),  # above it
        ((-0.5, 0.42, 1.2), (0.5 - 0.5 * 134 / 96 / 2, 0.52 + 0.5 * 134 / 96 / 2, -1.2)),  # nearer: larger
    ],
)
def test_projection_of_known_points(position, point):
    assert_near(Camera().project(torch.tensor([position])), torch.tensor([point]), 1e-6, "point")


def test_drawing_shows_each_limb_in_its_colour_on_black():
    size, number = 64, LIMBS.index((JOINT["left_elbow"], JOINT["left_hand"]))
    points = torch.full((1, len(JOINTS), 3), -9.0)  # everything else far outside
    points[0, JOINT["left_elbow"]] = torch.tensor([0.2, 0.3, 0.0])
    points[0, JOINT["left_hand"]] = torch.tensor([0.6, 0.3, 0.0])
    picture = draw_skeleton(points, size)
    assert_near(picture[0, :, 19, 25], limb_colours()[number], 1e-6, "colour on the limb")
    assert picture[0, :, 26:].abs().max() == 0 and picture[0, :, :, 45:].abs().max() == 0
    assert len({tuple(colour) for colour in limb_colours().tolist()}) == len(LIMBS)
