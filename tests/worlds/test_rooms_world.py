# SPDX-License-Identifier: Apache-2.0
"""Clips of the rooms world: the same everywhere, with chance behind doors, and a policy that looks at things."""

from __future__ import annotations

import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch

from aapt_fast.testing.compare import assert_near
from aapt_fast.worlds import WORLDS
from aapt_fast.worlds.rooms.camera import Camera, control_maps, read_maps
from aapt_fast.worlds.rooms.house import House, make_house
from aapt_fast.worlds.rooms.policy import DECIDES, Guide, first_pose, guided_poses
from aapt_fast.worlds.rooms.renderer import Renderer
from aapt_fast.worlds.rooms.sight import known_at_first, other_future
from aapt_fast.worlds.rooms.walker import Walker, is_free
from aapt_fast.worlds.rooms.world import RoomsWorld

WORLD, SIZE = RoomsWorld(), 32
CAMERA = Camera()


def walk(seed: int, frames: int) -> tuple[House, np.ndarray, np.ndarray]:
    """A house, and poses [frames, 6] and doors of a guided walk in it."""
    house = make_house(seed)
    return house, *guided_poses(Walker(house, first_pose(house, seed)), seed, frames)


def test_a_clip_is_the_same_whenever_it_is_made():
    first, again = WORLD.clip(3, 1, 9, SIZE), pickle.loads(pickle.dumps(WORLD)).clip(3, 1, 9, SIZE)
    assert torch.equal(first.video, again.video) and torch.equal(first.controls, again.controls)
    assert first.video.dtype == torch.uint8 and first.video.shape == (9, SIZE, SIZE, 3)
    assert first.controls.dtype == torch.float32 and first.controls.shape == (9, 6, 2, 2)
    longer = WORLD.clip(3, 1, 14, SIZE)
    assert torch.equal(longer.video[:9], first.video) and torch.equal(longer.controls[:9], first.controls)
    other = WORLD.clip(3, 2, 9, SIZE)
    assert (other.video.float() - first.video.float()).abs().mean() > 10


def test_houses_are_shared_by_number():
    few = RoomsWorld(houses=2)
    assert [few.scene(7, clip) for clip in range(4)] == [0, 1, 0, 1]
    assert len({WORLD.scene(seed, clip) for seed in range(3) for clip in range(5)}) == 15
    assert few.settings() != WORLD.settings() != RoomsWorld(cell=8).settings()
    assert WORLDS["rooms"] == WORLD and WORLDS["rooms-8"].clip(0, 0, 1, SIZE).controls.shape == (1, 6, 4, 4)


def test_futures_begin_alike_and_end_differently():
    differ = 0
    for clip in range(4):
        futures = [WORLD.clip(11, clip, 61, SIZE, future) for future in range(3 if clip == 0 else 2)]
        for other in futures[1:]:
            assert torch.equal(futures[0].video[0], other.video[0])
            assert torch.equal(futures[0].controls, other.controls)
        last = [each.video[-20:].float() for each in futures]
        differ += all((a - b).abs().mean() > 4 for a, b in pairwise(last))
    assert differ >= 2


def test_futures_keep_what_was_seen_and_the_way_free():
    changed = 0
    for seed in range(5):
        house, poses, doors = walk(seed, 121)
        known = known_at_first(house, poses, doors[0], CAMERA)
        other = other_future(house, seed, 2, poses, doors[0], CAMERA)
        assert other.plan == house.plan
        start = house.plan.room_at(poses[0, [0, 2]])
        assert start in known.rooms and other.rooms[start].style.wall.texture == house.rooms[start].style.wall.texture
        assert all(is_free(other, place, opened, 0.29) for place, opened in zip(poses[:, [0, 2]], doors, strict=True))
        unseen = [room for room in range(len(house.rooms)) if room not in known.rooms]
        changed += sum(other.rooms[room].style.wall.texture != house.rooms[room].style.wall.texture for room in unseen)
    assert changed >= 5


def test_the_same_place_looks_the_same_when_the_camera_comes_back():
    house, poses, doors = walk(3, 49)
    renderer, opened = Renderer(house, SIZE), doors[-1]
    before = renderer.render(poses[0], opened).image
    for pose in poses[::6]:
        renderer.render(pose, opened)
    assert np.array_equal(renderer.render(poses[0], opened).image, before)


def test_the_policy_keeps_away_from_walls_and_looks_at_things():
    far, looks, places = [], [], 0
    for seed in range(12):
        house, poses, doors = walk(100 + seed, 145)
        renderer, rooms = Renderer(house, 16), set()
        for pose, opened in zip(poses[::8], doors[::8], strict=True):
            place = pose[[0, 2]]
            rooms.add(house.plan.room_at(place))
            assert is_free(house, place, opened, 0.29)
            far.append(np.median(renderer.render(pose, opened).depth) > 1)
            looks.append(_looks_at_something(house, pose))
        places += len(rooms)
    assert np.mean(far) > 0.9 and np.mean(looks) > 0.75 and places >= 15


def _looks_at_something(house: House, pose: np.ndarray) -> bool:
    """True if the middle of a thing or door in the same room lies in the middle seven tenths of the picture."""
    room = house.plan.room_at(pose[[0, 2]])
    points = [(thing.low + thing.high) / 2 for thing in house.rooms[room].things if thing.high[1] > 0.1]
    points += [np.insert(house.plan.doors[door].place, 1, 1.1) for door in house.plan.doors_of(room)]
    seen = CAMERA.project(np.array(points), pose)
    return bool(((seen[:, 2] > 0.6) & (np.abs(seen[:, :2] - 0.5) < 0.35).all(1)).any())


def test_the_policy_decides_at_latent_frames_and_is_smooth():
    _, poses, _ = walk(4, 97)
    velocity = np.diff(poses[:, 3])
    velocity = (velocity + np.pi) % (2 * np.pi) - np.pi
    assert np.abs(np.diff(velocity)).max() < 0.05 and np.abs(velocity).max() > 0.01
    # within a latent frame the speed nears what was asked for: its changes shrink and keep their sign
    changes = np.diff(velocity)[: 4 * 23 + 3].tolist()
    for start in range(DECIDES, 4 * 22, DECIDES):
        first, *rest = changes[start - 1 : start + 3]
        assert all(abs(later) <= abs(first) + 1e-9 and later * first >= -1e-12 for later in rest)


def test_mirrored_clips_turn_the_other_way():
    opposite = 0
    for clip in range(4):
        plain, mirrored = WORLD.clip(5, clip, 17, SIZE), WORLD.mirrored(5, clip, 17, SIZE)
        assert torch.equal(plain.video[0], mirrored.video[0])
        (_, turned), (_, other) = (read_maps(each.controls) for each in (plain, mirrored))
        assert_near(other[:, 0, 2], -turned[:, 0, 2], 1e-4)
        opposite += (turned[:, 0, 2].abs().max() > 0.01).item()
    assert opposite >= 2


def test_first_frames_are_those_of_the_clips():
    first, clip = WORLD.first_frame(2, 5, SIZE), WORLD.clip(2, 5, 1, SIZE)
    assert np.array_equal(first.image, clip.video[0].numpy()) and torch.equal(first.control, clip.controls[0])
    again = WORLD.from_gallery(first.image, first.pose, first.scene)
    assert again.pose == first.pose and again.scene == WORLD.scene(2, 5) and torch.equal(again.control, first.control)


def test_drawings_show_where_the_camera_turns():
    clip = WORLD.clip(0, 2, 9, SIZE)
    assert WORLD.odd_controls(clip.controls) is None
    pictures = WORLD.draw_controls(clip.controls, 64)
    assert pictures.shape == (9, 3, 64, 64) and pictures.min() >= 0 and pictures.max() <= 1
    turning = np.zeros((3, 6))
    turning[:, 3] = (0, 0.04, 0)
    _, right, left = WORLD.draw_controls(control_maps(turning, 2), 64)[:, 0]
    centres = [float((each * torch.arange(64)).sum() / each.sum()) for each in (left, right)]
    assert centres[0] < 28 and centres[1] > 35


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"houses": -1}, "houses: expected 0 or more, got -1"),
        ({"cell": 0}, "cell: expected at least 1 pixel, got 0"),
        ({"samples": 4}, "samples: expected 1 or 2, got 4"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        RoomsWorld(**settings)


def test_bad_clips():
    with pytest.raises(ValueError, match="size: expected a multiple of the latent cell, 16 pixels, got 40"):
        WORLD.clip(0, 0, 1, 40)
    with pytest.raises(ValueError, match=r"future: expected 0, 1, 2, \.\.\., got -1"):
        WORLD.clip(0, 0, 1, SIZE, -1)
    with pytest.raises(ValueError, match="pose: expected six finite numbers"):
        WORLD.from_gallery(np.zeros((SIZE, SIZE, 3), np.uint8), (0.0,) * 5, 0)


def test_hands_play_every_axis_both_ways():
    """A model learns what a person can do with keys, up and down and tilts included."""
    house = make_house(3)
    guide = Guide(Walker(house, first_pose(house, 3)), 5)
    keys = np.stack([guide._press_keys() for _ in range(400)])
    assert np.abs(keys).max() == 1
    for sign in (-1, 1):
        assert ((sign * keys > 0.4).mean(0) > 0.03).all()
    assert (keys[:, 2] < 0).mean() > (keys[:, 2] > 0).mean(), "a guide walks forwards itself"
