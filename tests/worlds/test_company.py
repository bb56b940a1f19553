# SPDX-License-Identifier: Apache-2.0
"""Chance and what it moves: reproducible, independent of the controls where it should be, drawn among the limbs."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from aapt_fast.testing.compare import assert_near
from aapt_fast.worlds.chance import Chance
from aapt_fast.worlds.person.capsules import Capsules
from aapt_fast.worlds.person.company.ball import RADIUS, ball
from aapt_fast.worlds.person.company.company import Company, gather
from aapt_fast.worlds.person.company.passer_by import passer_by
from aapt_fast.worlds.person.company.scarf import PIECE, scarf, swing
from aapt_fast.worlds.person.identity import make_identity
from aapt_fast.worlds.person.players import random_motion
from aapt_fast.worlds.person.renderer import render
from aapt_fast.worlds.person.skeleton import JOINT, Camera, forward_kinematics
from aapt_fast.worlds.world import FPS

SIZE, FRAMES = 64, 61
IDENTITY = dataclasses.replace(make_identity(4), striped=False)
THINGS = {
    "passer-by": lambda chance, joints: passer_by(chance, len(joints)),
    "ball": lambda chance, joints: ball(chance, len(joints)),
    "scarf": lambda chance, joints: scarf(joints, IDENTITY, chance),
}


def bodies(frames: int = FRAMES, seed: int = 0) -> torch.Tensor:
    return forward_kinematics(random_motion(frames, seed))


def place(thing: Capsules) -> torch.Tensor:
    return torch.cat([thing.start, thing.end], dim=1)


@pytest.mark.parametrize("name", THINGS)
def test_a_function_of_seed_and_frame(name):
    joints, before = bodies(), torch.get_rng_state()
    whole = place(THINGS[name](Chance(3), joints))
    assert whole.isfinite().all() and len(whole) == FRAMES
    assert torch.equal(whole, place(THINGS[name](Chance(3), joints)))
    assert_near(place(THINGS[name](Chance(3), joints[:20])), whole[:20], 1e-6, "a shorter clip")
    assert (whole - place(THINGS[name](Chance(4), joints))).abs().max() > 0.05
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["passer-by", "ball"])
def test_nobody_controls_it(name):
    there = [place(THINGS[name](Chance(3), bodies(seed=seed))) for seed in (0, 1)]
    assert torch.equal(*there)


@pytest.mark.parametrize("name", THINGS)
def test_futures_part_after_the_first_frame_and_without_a_jump(name):
    joints = bodies(121)
    futures = [place(THINGS[name](Chance(3, future), joints)) for future in range(4)]
    for future in futures[1:]:
        assert torch.equal(futures[0][0], future[0])
        assert (futures[0] - future)[-60:].abs().max() > 0.05
        steps = (future[1:] - future[:-1]).abs().amax((1, 2))
        usual = (futures[0][1:] - futures[0][:-1]).abs().max()
        assert steps[:2].max() < 1.5 * usual
    assert (futures[1] - futures[2]).abs().max() > 0.05


def test_impossible_chances_are_refused():
    with pytest.raises(ValueError, match=r"future: expected 0, 1, 2, \.\.\., got -1"):
        Chance(0, -1)
    with pytest.raises(ValueError, match="company: expected a passer-by, a ball or a scarf, got none of them"):
        Company(passer_by=False, ball=False, scarf=False)


def test_draws_are_uniform_and_names_do_not_share_them():
    draws = Chance(0).each_frame("a", 2000, 3)
    assert draws.min() >= 0 and draws.max() < 1
    assert_near(draws.mean(0), torch.full((3,), 0.5), 0.03, "mean")
    assert_near(draws.var(0), torch.full((3,), 1 / 12), 0.01, "variance")
    others = [Chance(0).each_frame("b", 2000, 3), Chance(1).each_frame("a", 2000, 3)]
    for other in others:
        assert (torch.corrcoef(torch.stack([draws.flatten(), other.flatten()]))[0, 1]).abs() < 0.06


def test_the_ball_bounces_on_the_floor_and_stays_near_the_picture():
    bounces = []
    for seed in range(20):
        centre = ball(Chance(seed), 481).start[:, 0]
        assert RADIUS - 1e-6 <= centre[:, 1].min() < RADIUS + 0.1
        point = Camera().project(centre)
        assert point[:, 0].min() > -0.2 and point[:, 0].max() < 1.2
        rising = (centre[1:, 1] - centre[:-1, 1]) > 0
        bounces.append(int((rising[1:] & ~rising[:-1]).sum()))
        fall = centre[2:, 1] - 2 * centre[1:-1, 1] + centre[:-2, 1]
        assert_near(fall.median(), torch.tensor(-9.81 / FPS**2), 1e-4, "gravity")
    assert min(bounces) > 20


def test_the_passer_by_comes_and_goes():
    """He is seen in most clips, not always, walks on the floor and not inside the other."""
    shares = []
    for seed in range(30):
        body = passer_by(Chance(seed), 241)
        hips = body.start[:, 2]
        seen = (Camera().project(hips)[:, 0] - 0.5).abs() < 0.5
        shares.append(float(seen.float().mean()))
        assert body.shadow is not None and body.shadow.height.min() >= 0.059 and hips[:, 1].max() < 1.4
        assert hips[:, 2].min() > 0.25 or hips[:, 2].max() < -0.5
        place = body.shadow.ground[:, 0]
        assert (place[1:] - place[:-1]).abs().max() * FPS < 1.8
    shown = torch.tensor(shares)
    assert (shown > 0).float().mean() > 0.8 and 0.25 < shown.mean() < 0.9


def test_his_feet_do_not_slide():
    """While he walks, one of his feet moves less than half as fast as he does, on average."""
    slides = []
    for seed in range(8):
        body = passer_by(Chance(seed), 241)
        assert body.shadow is not None
        feet, place = body.start[:, [13, 16], 0], body.shadow.ground[:, 0]
        step, moved = (feet[1:] - feet[:-1]).abs().amin(1), (place[1:] - place[:-1]).abs()
        walking = moved > 0.9 * moved.max()
        slides.append(float(step[walking].mean() / moved[walking].mean()))
    assert max(slides) < 0.5


def test_scarf_pieces_hang_together_below_the_neck():
    joints = bodies(241, seed=2)
    thing = scarf(joints, IDENTITY, Chance(0))
    lengths = (thing.end[:, 1:] - thing.start[:, 1:]).norm(dim=-1)
    assert_near(lengths, torch.full_like(lengths, PIECE), 1e-5, "length")
    assert torch.equal(thing.end[:, 1:-1], thing.start[:, 2:])
    assert (thing.start[:, 1] - joints[:, JOINT["neck"]]).norm(dim=-1).max() < 0.25
    assert ((thing.end[:, -1] - thing.start[:, 1])[:, 1] < 0).float().mean() > 0.9


def test_scarf_swings_with_wind_and_lags_behind_the_neck():
    calm, still = torch.full((97, 2), 0.5), torch.zeros(97, 3)
    assert swing(still, calm).abs().max() == 0
    gusty = swing(still, Chance(0).each_frame("wind", 97, 2))
    assert 0.1 < gusty[:, -1, 0].std() < 1.2 and gusty.abs().max() <= 1.3
    moved = still.clone()
    moved[10:, 0] = 0.3 * (1 - torch.exp(-torch.arange(87) / 4))  # to the right, then at rest
    pulled = swing(moved, calm)
    assert pulled[:10].abs().max() == 0 and pulled[12, -1, 0] < -0.05  # the end stays behind, to the left
    assert pulled[14:40, -1, 0].max() > 0.1 and pulled[-1].abs().max() < 0.03  # swings over and comes to rest


def test_the_plain_picture_stays_where_company_is_not():
    joints = bodies(13)
    plain = render(joints, IDENTITY, SIZE)
    together = render(joints, IDENTITY, SIZE, company=gather(Company(), joints, IDENTITY, Chance(3)))
    changed = (plain - together).abs().amax((1, 2, 3))
    assert (changed > 0.1).all()
    same = (plain == together).float().mean()
    assert 0.4 < same < 0.99
    assert torch.equal(plain, render(joints, IDENTITY, SIZE, company=[]))


@pytest.mark.parametrize(("depth", "hidden"), [(-1.0, True), (0.6, False)], ids=["behind", "before"])
def test_what_is_nearer_hides_what_is_farther(depth, hidden):
    joints = forward_kinematics(torch.zeros(1, 17))
    chest, eye = joints[:, JOINT["chest"]], torch.tensor([0.0, 0.92, Camera().distance])
    line = (chest - eye) / (eye[2] - chest[:, 2:]) * (eye[2] - depth) + eye  # on the line of sight to the chest
    green = dataclasses.replace(ball(Chance(0), 1), start=line[:, None], end=line[:, None], shadow=None)
    green = dataclasses.replace(green, colours=torch.tensor([[0.0, 1.0, 0.0]]))
    video, plain = render(joints, IDENTITY, 96, company=[green]), render(joints, IDENTITY, 96)
    x, y = (Camera().project(chest)[0, :2] * 96).long().tolist()
    assert torch.equal(video[0, :, y, x], plain[0, :, y, x]) == hidden
    if not hidden:
        assert video[0, 1, y, x] > 0.5 and video[0, [0, 2], y, x].max() == 0


def test_the_shadow_of_a_ball_is_under_it_and_fades_with_height():
    joints = forward_kinematics(torch.zeros(1, 17))
    white = torch.ones(3, 96, 96)
    thing = ball(Chance(0), 1)
    dark = []
    for height in (0.0, 0.3, 5.0):
        centre = torch.tensor([[[0.7, RADIUS + height, -0.4]]])
        assert thing.shadow is not None
        shadow = dataclasses.replace(
            thing.shadow, ground=centre[:, 0] * torch.tensor([1.0, 0, 1.0]), height=torch.tensor([height])
        )
        away = dataclasses.replace(thing, start=centre + 9, end=centre + 9, shadow=shadow)  # the ball itself: unseen
        floor = render(joints, IDENTITY, 96, room=white, company=[away])
        x, y = (Camera().project(shadow.ground)[0, :2] * 96).long().tolist()
        dark.append(float(1 - floor[0, 0, y, x]))
    assert 0.3 < dark[0] < 0.45 and dark[0] - 0.1 > dark[1] > dark[2] and dark[2] == pytest.approx(0.168, abs=0.03)


def test_company_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"company: expected shape \[4, 1, 3\], got \[5, 1, 3\]"):
        render(bodies(4), IDENTITY, SIZE, company=[ball(Chance(0), 5)])
