# SPDX-License-Identifier: Apache-2.0
"""The network that reads camera motions off video frames of the rooms world."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from aapt_fast.testing.compare import assert_near
from aapt_fast.training.camera_network import (
    APART,
    DEPTH,
    UNITS,
    CameraNetwork,
    CameraNetworkConfig,
    CameraReader,
    asked_motions,
    camera_path,
    camera_reader,
    describe_camera_kept,
    motion_distance,
    render_pairs,
)
from aapt_fast.training.data import ClipSetConfig
from aapt_fast.training.recipes import READERS, describe_reader
from aapt_fast.worlds import WORLDS
from aapt_fast.worlds.rooms.camera import Camera, control_maps
from aapt_fast.worlds.rooms.world import RoomsWorld

TINY = CameraNetworkConfig(size=32, widths=(8, 8, 8), clips=3, held_out=2, pairs=4, steps=8, batch=8)


def in_units(**values: float) -> torch.Tensor:
    """One motion [1, 6]; metres and radians."""
    names = ("right", "up", "forwards", "yaw", "pitch", "roll")
    return torch.tensor([[values.get(name, 0.0) / unit for name, unit in zip(names, UNITS, strict=True)]])


def test_motions_of_several_frames_are_joined():
    poses = np.array([[0, 1.5, 0, 0.0, 0, 0], [0.1, 1.5, 0, 0.04, 0.01, 0], [0.1, 1.52, 0.2, 0.1, 0.01, 0]])
    asked = asked_motions(control_maps(poses, 4)[None, 1:])
    assert_near(asked, in_units(right=0.1, up=0.02, forwards=0.2, yaw=0.1, pitch=0.01), 1e-2)
    turned = poses + np.array([0, 0, 0, 1.3, 0, 0])
    turned[:, [0, 2]] = poses[:, [0, 2]] @ np.array([[np.cos(1.3), -np.sin(1.3)], [np.sin(1.3), np.cos(1.3)]])
    assert_near(asked_motions(control_maps(turned, 4)[None, 1:]), asked, 1e-3)


def test_distances_are_those_that_things_move_by():
    """What is `DEPTH` metres ahead, worked out by the camera of the world."""
    camera, size = Camera(), 96
    points = camera.rays(6).flatten(1).T.double().numpy()
    points = points / points[:, 2:] * DEPTH
    for motion in ({"yaw": 0.02}, {"pitch": -0.02}, {"roll": 0.02}, {"right": 0.05}, {"up": 0.05}, {"forwards": 0.1}):
        pose = np.array([motion.get(name, 0.0) for name in ("right", "up", "forwards", "yaw", "pitch", "roll")])
        now, before = (camera.project(points, each)[:, :2] * size for each in (pose, np.zeros(6)))
        expected = np.linalg.norm(now - before, axis=1).mean()
        found = motion_distance(in_units(**motion), in_units(), size)
        assert abs(float(found) / expected - 1) < 0.3  # a turn is taken for a shift at the picture's edges
        assert float(motion_distance(in_units(**motion), in_units(**motion), size)) == 0


def test_pairs_are_frames_of_the_world_and_their_motions(tmp_path):
    frames, moved = render_pairs(TINY, 2, 7, tmp_path)
    assert frames.shape == (8, 2, 3, 32, 32) and moved.shape == (8, 6)
    clip = RoomsWorld().clip(7, 0, 1 + APART, 32)
    assert torch.equal(frames[0], clip.video[::APART].permute(0, 3, 1, 2))
    assert_near(moved[:1], asked_motions(clip.controls[None, 1:]), 2e-2)
    again, _ = render_pairs(TINY, 2, 7, tmp_path)
    assert torch.equal(again, frames)


def test_it_is_trained_once_and_kept(tmp_path):
    assert describe_camera_kept(TINY, tmp_path).startswith("0 of 5 clips for the camera network are rendered")
    trained = camera_reader(TINY, tmp_path)
    assert trained.error > 0 and trained.still > 0
    kept = camera_reader(TINY, tmp_path)
    assert kept.error == trained.error and [path.name for path in tmp_path.iterdir()] == [
        camera_path(TINY, tmp_path).name
    ]
    assert describe_camera_kept(TINY, tmp_path).startswith("the camera network is kept in")
    for mine, other in zip(trained.network.state_dict().values(), kept.network.state_dict().values(), strict=True):
        assert torch.equal(mine, other)
    clip = RoomsWorld().clip(9, 0, 9, 32)
    video = (clip.video.permute(3, 0, 1, 2).float() / 127.5 - 1)[None].expand(2, -1, -1, -1, -1)
    error, features = kept.read(video, clip.controls[None].expand(2, -1, -1, -1, -1))
    assert error.shape == (2, 9) and features.shape == (2, 9, 64)
    assert not error[:, :APART].any() and (error[:, APART:] > 0).all()
    assert f"errs by {kept.error:.2f} pixels of 32" in kept.notes()["control"]


def test_errors_belong_to_their_video_frames():
    """A reader that sees no motion errs by what is asked for between that frame and the one `APART` before."""
    network = CameraNetwork(TINY.widths).eval()
    torch.nn.init.zeros_(network.motion.weight)
    torch.nn.init.zeros_(network.motion.bias)
    poses = np.zeros((8, 6))
    poses[5:, 3] = 0.04  # one turn, at video frame 5
    controls = control_maps(poses, 2)
    reader = CameraReader(network, TINY, 0.0, 0.0)
    error, _ = reader.read(torch.zeros(1, 3, 8, 32, 32), controls[None])
    turn = float(motion_distance(in_units(yaw=0.04), in_units(), 32))
    assert_near(error[0], torch.tensor([0, 0, 0, 0, 0, turn, turn, 0]), 2e-3)


def test_it_learns_to_see_turns():
    """Frames of one wall of noise that moves aside: the loss falls, and signs come out right."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network, shifts = CameraNetwork((16, 16, 16)), torch.tensor([-4, 4])
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for step in range(41):
        wall = torch.nn.functional.avg_pool2d(torch.rand(16, 3, 40, 40, generator=generator) * 4 - 2, 5, 1, 2)
        picks = torch.randint(2, (16,), generator=generator)
        moved = torch.stack([wall[n, :, 4:36, 4 + s : 36 + s] for n, s in enumerate(shifts[picks].tolist())])
        seen, _ = network(torch.stack([wall[:, :, 4:36, 4:36], moved], dim=1))
        loss = (seen[:, 3] - (2.0 * picks - 1)).square().mean()
        if step == 40:
            assert ((seen[:, 3] > 0) == (picks > 0)).float().mean() > 0.9
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def test_it_reads_the_rooms_world(tmp_path):
    assert READERS["rooms"] is READERS["rooms-8"]
    for name in ("rooms", "rooms-8"):
        found = describe_reader(ClipSetConfig("few", WORLDS[name], clips=1, frames=5, size=32), tmp_path)
        assert "0 of 352 clips for the camera network" in found


@pytest.mark.parametrize("change", [{"size": 40}, {"clips": 0}, {"pairs": 0}])
def test_bad_settings(change):
    (name,) = change
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        dataclasses.replace(TINY, **change)
    with pytest.raises(ValueError, match="pairs: expected"):
        CameraNetwork(TINY.widths)(torch.zeros(1, 2, 3, 40, 40))
