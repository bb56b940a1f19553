# SPDX-License-Identifier: Apache-2.0
"""Parts of the page by themselves, in a real browser: the playout clock under jitter, and bodies that are dragged."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.serve import fake_server

from aapt_fast.testing.browser import Page
from aapt_fast.worlds.person.plausible import bone_lengths, odd_poses
from aapt_fast.worlds.person.players import random_motion
from aapt_fast.worlds.person.skeleton import CAMERA, JOINT, JOINTS, LIMBS, pose_points

PERIOD = 1000 / 24
PLAYOUT = """(async arrivals => {
    const { PlayoutClock } = await import("/playout.js");
    const clock = new PlayoutClock(24), queue = [], drawn = [];
    let next = 0;
    for (let now = 0; drawn.length < 4 * arrivals.length; now += 1000 / 60) {
        for (; next < arrivals.length && arrivals[next] <= now; next += 1) {
            clock.arrived(4 * next, arrivals[next]);
            queue.push(...[0, 1, 2, 3].map(index => 4 * next + index));
        }
        if (queue.length && clock.ready(now)) {
            clock.drawn(queue[0], now);
            drawn.push([queue.shift(), now]);
        }
    }
    return drawn;
})"""
DRAG = """(async ([control, points, joint, x, y]) => {
    const { Body } = await import("/body.js");
    return new Body(control).drag(points, joint, x, y);
})"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with fake_server.running(fake_server.POSE_CONTROL) as (_, url):
        yield url


@pytest.fixture
def parts(page: Page, address: str) -> Page:
    """A page of the server that runs none of its scripts."""
    page.open(f"{address}icon.svg")
    page.wait_for(f"location.href === '{address}icon.svg'")
    return page


def call(page: Page, function: str, argument: Any) -> Any:
    return page.evaluate(f"{function}({json.dumps(argument)})")


def gaps(page: Page, arrivals: list[float]) -> list[float]:
    """Milliseconds between pictures drawn, for steps that arrive at these times; every picture is drawn, in order."""
    drawn = call(page, PLAYOUT, arrivals)
    assert [frame for frame, _ in drawn] == list(range(4 * len(arrivals)))
    times = [time for _, time in drawn]
    return [after - before for before, after in itertools.pairwise(times)]


def longest_row(late: list[bool]) -> int:
    """The most late pictures in a row."""
    longest = row = 0
    for each in late:
        row = row + 1 if each else 0
        longest = max(longest, row)
    return longest


def test_pictures_that_arrive_together_are_drawn_evenly(parts: Page) -> None:
    between = gaps(parts, [100 + 4 * PERIOD * step for step in range(60)])
    assert max(between[8:]) < 1.5 * PERIOD
    assert sum(between) == pytest.approx(len(between) * PERIOD, rel=0.01)


def test_after_a_late_step_the_buffer_has_grown(parts: Page) -> None:
    jitter = torch.rand(120, generator=torch.Generator().manual_seed(0)) * 70
    between = gaps(parts, [4 * PERIOD * step + float(jitter[step]) for step in range(120)])
    late = [gap > 1.5 * PERIOD for gap in between]
    assert longest_row(late) <= 1
    assert sum(late[40:]) <= 3


def test_the_buffer_shrinks_when_the_network_is_calm_again(parts: Page) -> None:
    arrivals = [4 * PERIOD * step + (120 if step == 20 else 0) for step in range(120)]
    drawn = call(parts, PLAYOUT, arrivals)
    delay = [drawn[4 * step][1] - arrivals[step] for step in range(120)]
    assert delay[22] > 100
    assert delay[-1] < 30


def test_a_slow_server_gives_slow_motion_and_no_jerks(parts: Page) -> None:
    between = gaps(parts, [300.0 * step for step in range(60)])[40:]
    assert max(between) < 1.5 * 75 and min(between) > 0.5 * 75


def control() -> dict[str, Any]:
    """What the server says of the control of `mini-person`."""
    sides = [
        next((side for side in ("left", "right") if all(JOINTS[joint].startswith(side) for joint in limb)), "middle")
        for limb in LIMBS
    ]
    bones = [[*limb, side] for limb, side in zip(LIMBS, sides, strict=True)]
    return {"names": list(JOINTS), "bones": bones, "camera": dataclasses.asdict(CAMERA)}


@pytest.mark.parametrize(
    "joint", ["left_hand", "right_foot", "right_elbow", "left_knee", "head", "chest", "pelvis", "right_hand"]
)
def test_bones_keep_their_lengths(parts: Page, joint: str) -> None:
    poses = pose_points(random_motion(240, seed=5))[::60]
    for place, before in enumerate(poses):
        x, y = (
            before[JOINT[joint], :2] + torch.tensor([[0.05, -0.06], [-0.3, 0.2], [0, 0.04], [0.4, -0.4]][place])
        ).tolist()
        after = torch.tensor(call(parts, DRAG, [control(), before.tolist(), joint, x, y]))
        lengths = [bone_lengths(CAMERA.unproject(points[None])) for points in (before, after)]
        torch.testing.assert_close(lengths[1], lengths[0], rtol=0.01, atol=0.005)
        assert odd_poses(after[None]) is None
        assert not torch.equal(before, after)


def test_a_hand_goes_where_it_is_dragged(parts: Page) -> None:
    before = pose_points(random_motion(1, seed=5))[0]
    shoulder = before[JOINT["left_shoulder"]]
    target = (shoulder[:2] + torch.tensor([-0.1, -0.12])).tolist()
    after = torch.tensor(call(parts, DRAG, [control(), before.tolist(), "left_hand", *target]))
    assert after[JOINT["left_hand"], :2].tolist() == pytest.approx(target, abs=0.03)
    others = [JOINT[name] for name in JOINTS if name not in ("left_hand", "left_elbow")]
    torch.testing.assert_close(after[others], before[others])


def test_feet_stay_where_they_are_when_the_body_crouches(parts: Page) -> None:
    before = pose_points(torch.zeros(1, 17))[0]
    x, y, _ = before[JOINT["pelvis"]].tolist()
    after = torch.tensor(call(parts, DRAG, [control(), before.tolist(), "pelvis", x, y + 0.08]))
    feet = [JOINT["left_foot"], JOINT["right_foot"]]
    torch.testing.assert_close(after[feet], before[feet], rtol=0, atol=2e-3)
    assert after[JOINT["head"], 1] > before[JOINT["head"], 1] + 0.05
