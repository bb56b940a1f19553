# SPDX-License-Identifier: Apache-2.0
"""Poses that no body of the person world can have are found, those of its motions are not."""

from __future__ import annotations

import pytest

from aapt_fast.testing.compare import assert_near
from aapt_fast.worlds.person.plausible import odd_poses
from aapt_fast.worlds.person.players import random_motion
from aapt_fast.worlds.person.skeleton import CAMERA, JOINT, forward_kinematics, pose_points


def test_the_camera_can_be_undone():
    joints = forward_kinematics(random_motion(40, 3))
    assert_near(CAMERA.unproject(CAMERA.project(joints)), joints, 1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_every_motion_is_possible(seed):
    points = pose_points(random_motion(240, seed))
    assert odd_poses(points) is None
    without_depth = points.clone()
    without_depth[..., 2] = 0  # of a tracker in the picture's plane
    assert odd_poses(without_depth) is None


def test_a_smaller_person_is_possible_and_a_doll_is_not():
    joints = forward_kinematics(random_motion(8, 1))
    assert odd_poses(CAMERA.project(0.7 * joints)) is None
    doll = odd_poses(CAMERA.project(0.4 * joints))
    assert str(doll) == "8 of 8 poses are of a body less than half as large as those of this world"


def test_the_worst_bone_is_named():
    points = pose_points(random_motion(8, 1))
    points[3:5, JOINT["left_hand"], 0] += 0.3
    points[5, JOINT["left_hand"], 0] += 0.6
    said = str(odd_poses(points))
    assert said.startswith("3 of 8 poses have longer bones than a body of this world: 1.")
    assert said.endswith(" m from left_elbow to left_hand in video frame 5, where it has 0.26 m")


def test_a_body_beside_the_picture_is_found():
    points = pose_points(random_motion(8, 1))
    points[6:, :, 0] += 0.9
    assert str(odd_poses(points)) == "2 of 8 poses lie wholly outside of the picture"


def test_swapped_axes_are_odd():
    assert odd_poses(pose_points(random_motion(8, 1))[..., [2, 0, 1]]) is not None
