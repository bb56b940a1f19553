# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from aapt_fast.testing.compare import assert_near
from aapt_fast.worlds.person.identity import (
    FLOORS,
    SHIRT,
    SHOES,
    SKIN,
    TROUSERS,
    WALLS,
    Identity,
    make_identity,
)
from aapt_fast.worlds.person.players import random_motion
from aapt_fast.worlds.person.renderer import draw_room, render
from aapt_fast.worlds.person.skeleton import ANGLE, ANGLES, JOINT, Camera, forward_kinematics, mirror

SIZE = 64


def body(**angles: float) -> torch.Tensor:
    """Joints [1, 19, 3] of one pose: arms half raised, so that nothing hides anything, and the named angles."""
    pose = torch.zeros(1, len(ANGLES))
    for name, value in {"left_arm_raise": 1.3, "right_arm_raise": 1.3, **angles}.items():
        pose[0, ANGLE[name]] = value
    return forward_kinematics(pose)


def bodies(count: int = 4, seed: int = 0) -> torch.Tensor:
    """Joints [count, 19, 3] out of a random motion."""
    return forward_kinematics(random_motion(12 * count, seed)[::12])


def plain_identity() -> Identity:
    return dataclasses.replace(make_identity(4), striped=False, wall="plain", floor="plain")


def silhouette(joints: torch.Tensor, size: int = SIZE) -> torch.Tensor:
    """A black person in a white room [N, 3, size, size]."""
    black = dataclasses.replace(plain_identity(), colours=torch.zeros(5, 3))
    return render(joints, black, size, room=torch.ones(3, size, size))


def pixel(video: torch.Tensor, joints: torch.Tensor, name: str) -> torch.Tensor:
    """Colour [3] of the pixel that holds the joint's projection."""
    x, y = (Camera().project(joints)[0, JOINT[name], :2] * video.shape[-1]).long().tolist()
    return video[0, :, y, x]


def hue(colour: torch.Tensor) -> torch.Tensor:
    """What light leaves of a colour [3]: its channels relative to the strongest."""
    return colour / colour.max()


def test_rendering_is_deterministic_and_in_range():
    joints, before = bodies(), torch.get_rng_state()
    video = render(joints, make_identity(3), SIZE)
    assert video.shape == (4, 3, SIZE, SIZE) and video.dtype == torch.float32
    assert video.isfinite().all() and video.min() >= 0 and video.max() <= 1
    assert torch.equal(video, render(joints, make_identity(3), SIZE))
    assert torch.equal(torch.get_rng_state(), before)


def test_identity_is_its_seed():
    joints = bodies(1)
    pictures = torch.cat([render(joints, make_identity(seed), SIZE) for seed in (0, 1, 2)])
    assert torch.equal(pictures[1], render(joints, make_identity(1), SIZE)[0])
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert (pictures[a] - pictures[b]).abs().mean() > 0.02


def test_a_video_frame_does_not_depend_on_its_neighbours():
    joints = bodies()
    together, alone = render(joints, make_identity(5), SIZE), render(joints[2:3], make_identity(5), SIZE)
    assert_near(alone[0], together[2], 1e-6, "picture")


@pytest.mark.parametrize(
    ("joint", "colour"),
    [
        ("left_hand", SKIN),
        ("right_hand", SKIN),
        ("left_shoulder", SHIRT),
        ("chest", SHIRT),
        ("left_knee", TROUSERS),
        ("right_knee", TROUSERS),
        ("left_toe", SHOES),
        ("right_toe", SHOES),
    ],
)
@pytest.mark.parametrize("heading", [0.0, 0.4], ids=["front", "turned"])
def test_pixel_at_a_joint_has_the_colour_of_its_part(joint, colour, heading):
    identity, joints = plain_identity(), body(heading=heading)
    seen = pixel(render(joints, identity, 128), joints, joint)
    assert_near(hue(seen), hue(identity.colours[colour]), 2e-3, "hue")


@pytest.mark.parametrize(("swing", "colour"), [(1.0, SKIN), (-1.0, SHIRT)], ids=["in front", "behind"])
def test_the_nearer_part_hides_the_farther(swing, colour):
    identity = plain_identity()
    joints = body(left_arm_swing=swing)
    joints[0, JOINT["left_hand"], :2] = joints[0, JOINT["chest"], :2] - torch.tensor([0.0, 0.2])
    seen = pixel(render(joints, identity, 128), joints, "left_hand")
    assert_near(hue(seen), hue(identity.colours[colour]), 2e-3, "hue")


def test_stripes_mark_the_shirt_only():
    joints = body()
    plain, striped = (
        render(joints, dataclasses.replace(plain_identity(), striped=striped), 128) for striped in (False, True)
    )
    changed = (plain - striped).abs().amax(1)[0]
    chest_row = int(Camera().project(joints)[0, JOINT["chest"], 1] * 128) + 4
    hip_row = int(Camera().project(joints)[0, JOINT["left_knee"], 1] * 128)
    assert changed[chest_row].max() > 0.1 and changed[hip_row].max() == 0


def test_mirrored_poses_give_mirrored_silhouettes():
    poses = random_motion(60, 3)[::12]
    seen, mirrored = (silhouette(forward_kinematics(each)) for each in (poses, mirror(poses)))
    assert (seen - seen.flip(-1)).abs().max() > 0.5  # these poses are not symmetric themselves
    assert_near(mirrored, seen.flip(-1), 1e-3, "picture")


def test_edges_are_anti_aliased():
    pixel_width = 3.2 / (134 / 96) / SIZE  # metres at the stage
    still, moved = silhouette(body())[0, 0], silhouette(body(shift=0.2 * pixel_width))[0, 0]
    edge = (still > 0.1) & (still < 0.5)
    assert 0.01 < edge.float().mean() < 0.15
    change = (moved - still).abs()
    assert 0.1 < change.max() < 0.35  # a fifth of a pixel; a hard edge would flip pixels from 0 to 1


def test_the_picture_does_not_depend_on_the_resolution():
    joints, identity = bodies(2, seed=6), make_identity(8)
    fine, coarse = render(joints, identity, 192), render(joints, identity, 96)
    difference = (F.avg_pool2d(fine, 2) - coarse).abs()
    assert difference.mean() < 0.006 and (difference > 0.1).float().mean() < 0.004


def test_shadow_fades_when_the_feet_leave_the_floor():
    """Looked at between the feet, where nothing else is drawn."""
    bright = []
    for lift in (0.0, 0.2):
        video = silhouette(body(lift=lift, left_leg_raise=0.5, right_leg_raise=0.5), 96)
        bright.append(float(video[0, 0, int(96 * 0.92), 48]))
    assert bright[0] < bright[1] - 0.05


@pytest.mark.parametrize(
    "room", [{"wall": wall} for wall in WALLS] + [{"floor": floor} for floor in FLOORS], ids=lambda room: str(room)
)
def test_rooms(room):
    plain = draw_room(plain_identity(), SIZE)
    patterned = draw_room(dataclasses.replace(plain_identity(), **room), SIZE)
    assert patterned.isfinite().all() and patterned.min() >= 0 and patterned.max() <= 1
    changed = (patterned - plain).abs().amax(0) > 0.02
    wall, floor = changed[: int(SIZE * 0.6)].float().mean(), changed[int(SIZE * 0.7) :].float().mean()
    assert (wall > 0.02) == (room.get("wall", "plain") != "plain")
    assert (floor > 0.02) == (room.get("floor", "plain") != "plain")


def test_a_room_drawn_before_gives_the_same_picture():
    joints, identity = bodies(2), make_identity(1)
    drawn = draw_room(identity, SIZE)
    assert torch.equal(render(joints, identity, SIZE, room=drawn), render(joints, identity, SIZE))


@pytest.mark.parametrize("size", [0, -8, 20, 95])
def test_other_sizes_are_refused(size):
    with pytest.raises(ValueError, match=f"size: expected a positive multiple of 8, got {size}"):
        render(bodies(1), make_identity(0), size)


def test_other_joints_are_refused():
    with pytest.raises(ValueError, match=r"joints: expected shape \[N, 19, 3\]"):
        render(torch.zeros(1, 18, 3), make_identity(0))
