# SPDX-License-Identifier: Apache-2.0
"""Control maps of the rooms world: rays that say how the camera moved, and back again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aapt_fast.testing.compare import assert_near
from aapt_fast.worlds.rooms.camera import (
    DIRECTION_UNIT,
    ORIGIN_UNIT,
    Camera,
    control_maps,
    motions,
    read_maps,
    rotation,
    turn_angles,
)
from aapt_fast.worlds.rooms.plausible import odd_maps

CAMERA = Camera()


def some_poses(frames: int = 12, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    steps = rng.uniform(-1, 1, (frames, 6)) * np.array([0.04, 0.02, 0.04, 0.05, 0.03, 0.02])
    return np.array([3.0, 1.5, -2.0, 2.7, 0.1, 0.0]) + steps.cumsum(0)


def test_rotations_turn_to_the_right_and_upwards():
    right, up, forwards = rotation(np.array([0, 0, 0, np.pi / 2, 0, 0])).T
    np.testing.assert_allclose([right, up, forwards], [[0, 0, -1], [0, 1, 0], [1, 0, 0]], atol=1e-12)
    assert rotation(np.array([0, 0, 0, 0, 0.3, 0]))[1, 2] > 0  # looks up
    assert rotation(np.array([0, 0, 0, 0, 0, 0.3]))[1, 0] < 0  # right side down
    turned = rotation(some_poses())
    np.testing.assert_allclose(turned.transpose(0, 2, 1) @ turned, np.tile(np.eye(3), (12, 1, 1)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(turned), 1)


def test_a_known_point_moves_as_the_rays_say():
    """The ray of a cell, in the axes of the frame before, leads to the point that the cell shows now."""
    poses, cells = some_poses(), 12
    maps = control_maps(poses, cells, CAMERA)
    still = CAMERA.rays(cells)
    rng = np.random.default_rng(1)
    for frame in range(1, len(poses)):
        row, column = (int(each) for each in rng.integers(0, cells, 2))
        ray = still[:, row, column].double().numpy()
        point = poses[frame, :3] + rotation(poses[frame]) @ ray * 2.7  # seen in the middle of that cell
        now = CAMERA.project(point[None], poses[frame])[0]
        np.testing.assert_allclose(now[:2] * cells, [column + 0.5, row + 0.5], atol=1e-5)
        entry = maps[frame, :, row, column].double().numpy()
        origin, direction = entry[:3] * ORIGIN_UNIT, entry[3:] * DIRECTION_UNIT + ray
        before = CAMERA.project(point[None], poses[frame - 1])[0]
        by_rays = origin + direction * 2.7  # in the axes of the camera before
        place = [0.5 + by_rays[0] / by_rays[2] / CAMERA.half / 2, 0.5 - by_rays[1] / by_rays[2] / CAMERA.half / 2]
        np.testing.assert_allclose([*place, by_rays[2]], before, atol=1e-5)


@pytest.mark.parametrize("cells", [2, 6, 12])
def test_motions_are_read_back(cells):
    poses = some_poses()
    moved, turned = motions(poses)
    found_moved, found_turned = read_maps(control_maps(poses, cells, CAMERA)[1:], CAMERA)
    assert_near(found_moved, torch.from_numpy(moved), 1e-6)
    assert_near(found_turned, torch.from_numpy(turned), 1e-5)


def test_the_first_frame_stands_and_parts_join():
    poses = some_poses()
    maps = control_maps(poses, 6)
    assert not maps[0].any() and not control_maps(np.tile(poses[:1], (3, 1)), 6).abs().gt(1e-5).any()
    assert torch.equal(control_maps(poses[4:], 6)[1:], maps[5:])


def test_small_turns_are_read_as_angles():
    poses = np.array([[0, 0, 0, 0, 0, 0], [0, 0, 0, 0.03, 0, 0], [0, 0, 0, 0.03, 0.02, 0], [0, 0, 0, 0.03, 0.02, 0.01]])
    angles = turn_angles(read_maps(control_maps(poses, 6)[1:])[1])
    assert_near(angles, torch.tensor([[0.03, 0, 0], [0, 0.02, 0], [0, 0, 0.01]]), 1e-4)


def test_only_cameras_are_plausible():
    maps = control_maps(some_poses(), 12, CAMERA)
    assert odd_maps(maps, CAMERA) is None
    noisy = maps + 0.05 * torch.randn(maps.shape, generator=torch.Generator().manual_seed(0))
    assert odd_maps(noisy, CAMERA) is None
    torn = maps.clone()
    torn[3, 0, :, :6] += 1
    assert odd_maps(torn, CAMERA).kind == "no camera" and "1 of 12" in str(odd_maps(torn, CAMERA))
    assert odd_maps(torch.ones(4, 6, 12, 12), CAMERA).kind == "no camera"
    assert odd_maps(control_maps(5 * some_poses(), 12, CAMERA), CAMERA).kind == "fast"


@pytest.mark.parametrize("shape", [(2, 5, 4, 4), (6, 4, 4), (2, 6, 4, 5)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="maps: expected"):
        read_maps(torch.zeros(shape))


def test_bad_field_of_view():
    with pytest.raises(ValueError, match="field_of_view: expected 10 to 150 degrees, got 5"):
        Camera(5)
