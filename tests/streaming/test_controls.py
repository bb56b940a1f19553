# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy
import pytest
import torch

from aapt_fast.models.aapt.config import ControlConfig
from aapt_fast.streaming.controls import DEPTH_GAIN, OFFSET_UNIT, SPREAD, clip_controls, limb_maps, step_entries
from aapt_fast.testing.compare import assert_near

GRID = (3, 4)
LIMBS = ((0, 1), (1, 2), (0, 2))
POSE = ControlConfig(kind="pose", joints=3, limbs=LIMBS)
MAPS = ControlConfig(kind="maps", channels=5)
WEIGHT, DX, DY, ALONG, DEPTH = range(5)


def scalar_maps(start: list[float], end: list[float], x: float, y: float) -> list[float]:
    """The five channels of one limb at one place, from the definition."""
    along_x, along_y = end[0] - start[0], end[1] - start[1]
    place = ((x - start[0]) * along_x + (y - start[1]) * along_y) / (along_x**2 + along_y**2)
    place = min(max(place, 0), 1)
    dx, dy = x - start[0] - place * along_x, y - start[1] - place * along_y
    weight = math.exp(-(dx**2 + dy**2) / (2 * SPREAD**2))
    depth = DEPTH_GAIN * (start[2] + place * (end[2] - start[2]))
    return [weight * channel for channel in (1, dx / OFFSET_UNIT, dy / OFFSET_UNIT, place, depth)]


def test_limb_maps_follow_their_definition():
    points = torch.rand(2, 3, 3) * 1.2 - 0.1
    maps = limb_maps(points, LIMBS, GRID)
    assert maps.shape == (2, 15, *GRID)
    expected = torch.empty(2, 5, 3, *GRID, dtype=torch.float64)
    for index in numpy.ndindex(2, 3, *GRID):
        batch, limb, row, column = index
        start, end = (points[batch, joint].tolist() for joint in LIMBS[limb])
        place = ((column + 0.5) / GRID[1], (row + 0.5) / GRID[0])
        expected[batch, :, limb, row, column] = torch.tensor(scalar_maps(start, end, *place), dtype=torch.float64)
    assert_near(maps, expected.flatten(1, 2), 1e-5)


def test_a_limb_seen_end_on_stays_finite():
    maps = limb_maps(torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 1.0]]), ((0, 1),), GRID)
    assert maps.isfinite().all() and maps[WEIGHT].max() > 0.4


def test_a_joint_moves_the_maps_smoothly():
    points = torch.rand(3, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: limb_maps(p, LIMBS, (2, 3)), (points,), eps=1e-7, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "entry", "channels"), [(POSE, (3, 3), 60), (MAPS, (5, *GRID), 20)], ids=["pose", "maps"]
)
def test_one_entry_is_held_for_all(config, entry, channels):
    single = torch.rand(entry)
    held = step_entries(single, config, GRID)
    assert held.shape == (channels, *GRID)
    assert torch.equal(held, step_entries(torch.stack([single] * 4), config, GRID))
    several = torch.rand(4, *entry)
    parts = step_entries(several, config, GRID).unflatten(0, (4, -1))
    for index in range(4):
        assert torch.equal(parts[index], step_entries(several[index], config, GRID).unflatten(0, (4, -1))[0])


def test_arrays_are_tensors_too():
    points = numpy.random.rand(4, 3, 3)
    expected = step_entries(torch.from_numpy(points).float(), POSE, GRID)
    assert torch.equal(step_entries(points, POSE, GRID), expected)


@pytest.mark.parametrize(
    "as_given",
    [
        lambda pose: pose.tolist(),
        lambda pose: [entry.numpy() for entry in pose],
        lambda pose: tuple(pose),
        lambda pose: pose.double(),
        lambda pose: pose.numpy()[::-1].copy()[::-1],
    ],
    ids=["lists", "list of arrays", "tuple of tensors", "float64", "array that runs backwards"],
)
def test_whatever_holds_numbers(as_given):
    pose = torch.rand(4, 3, 3)
    assert torch.equal(step_entries(as_given(pose), POSE, GRID), step_entries(pose, POSE, GRID))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.int32])
def test_integers_are_numbers(dtype):
    maps = torch.randint(0, 2, (4, 5, *GRID), dtype=dtype)
    expected = step_entries(maps.float(), MAPS, GRID)
    for given in (maps, maps.numpy(), maps.tolist()):
        assert torch.equal(step_entries(given, MAPS, GRID), expected)


def test_poses_in_pixels_are_noticed():
    pose = torch.rand(4, 3, 3)
    step_entries(pose * 3 - 1, POSE, GRID)
    outside = pose.clone()
    outside[:, :1] += 3  # one joint of three has left
    step_entries(outside, POSE, GRID)
    expected = (
        r"control: expected x and y as fractions of width and height, mostly in 0..1, got values from .*\(pixels\?"
    )
    for pixels in (pose * 96, (pose[0] * 96).int(), pose * 96 - 48, (pose[0] * 832).tolist()):
        with pytest.raises(ValueError, match=expected):
            step_entries(pixels, POSE, GRID)
    step_entries(torch.rand(5, *GRID) * 96, MAPS, GRID)  # maps may hold anything


@pytest.mark.parametrize("with_previous", [False, True])
def test_clips_hold_the_controls_of_their_steps(with_previous):
    config = ControlConfig(kind="pose", joints=3, limbs=LIMBS, with_previous=with_previous)
    points = torch.rand(2, 1 + 4 * 3, 3, 3)
    controls = clip_controls(points, config, GRID)
    assert controls.shape == (2, config.step_channels, 3, *GRID)
    for clip in range(2):
        previous = step_entries(points[clip, 0], config, GRID)
        for step in range(3):
            entries = step_entries(points[clip, 1 + 4 * step : 5 + 4 * step], config, GRID)
            expected = torch.cat([entries, previous]) if with_previous else entries
            assert torch.equal(controls[clip, :, step], expected)
            previous = entries


@pytest.mark.parametrize(
    ("control", "error", "message"),
    [
        (None, TypeError, "control: expected a tensor, an array or lists of numbers, got NoneType"),
        ([[0.0] * 3] * 2 + [[0.0] * 2], TypeError, "lists of numbers, got list with parts of unequal lengths, or"),
        ([["a"] * 3] * 3, TypeError, "lists of numbers, got list with values of dtype <U1$"),
        (numpy.zeros((3, 3), object), TypeError, "lists of numbers, got ndarray with values of dtype object$"),
        (numpy.zeros((3, 3), numpy.longdouble), TypeError, "lists of numbers, got ndarray with values of dtype float"),
        (
            [torch.zeros(3, 3), torch.zeros(2, 3)],
            TypeError,
            r"lists of numbers, got a list of unequal parts: shape \[3, 3\] on cpu and shape \[2, 3\] on cpu$",
        ),
        (
            torch.zeros(3, 3, device="meta"),
            TypeError,
            "control: expected a tensor with real numbers in memory, got one on",
        ),
        (
            [torch.zeros(3, 3).to_sparse()] * 4,
            TypeError,
            "control: expected a tensor with real numbers in memory, got one",
        ),
        (torch.zeros(3, 3, dtype=torch.bool), TypeError, "lists of numbers, got torch.bool"),
        ("left", TypeError, "control: expected a tensor, an array or lists of numbers, got str"),
        ([[0.0] * 3] * 2, ValueError, r"control: expected shape \[3, 3\], got \[2, 3\]"),
        (torch.zeros(4, 3), ValueError, r"control: expected shape \[3, 3\], got \[4, 3\]"),
        (torch.zeros(3, 3, 3), ValueError, r"control: expected shape \[4, 3, 3\], .*, got \[3, 3, 3\]; "),
        (torch.zeros(0, 3, 3), ValueError, r"control: expected shape \[4, 3, 3\], .*, got \[0, 3, 3\]$"),
        (
            torch.zeros(()),
            ValueError,
            r"control: expected shape \[4, 3, 3\], an entry .* one for all of them, got \[\]$",
        ),
        (torch.full((3, 3), torch.nan), ValueError, "control: expected finite values"),
        (torch.full((3, 3), -torch.inf), ValueError, "control: expected finite values"),
        (numpy.full((3, 3), 1e300), ValueError, "control: expected finite values"),  # not in float32
    ],
    ids=lambda value: "" if isinstance(value, type) else None,
)
def test_bad_controls(control, error, message):
    with pytest.raises(error, match=message):
        step_entries(control, POSE, GRID)


@pytest.mark.parametrize("as_given", [lambda pose: pose, lambda pose: list(pose), lambda pose: list(map(list, pose))])
def test_controls_of_a_tracker_that_is_trained_need_no_detach(as_given):
    pose = torch.rand(4, 3, 3, requires_grad=True)
    entries = step_entries(as_given(pose), POSE, GRID)
    assert not entries.requires_grad and torch.equal(entries, step_entries(pose.detach(), POSE, GRID))


def test_bad_clips():
    with pytest.raises(ValueError, match=r"controls: expected 1 \+ 4 n video frames, got 8"):
        clip_controls(torch.zeros(1, 8, 3, 3), POSE, GRID)
    with pytest.raises(ValueError, match="controls: expected shape"):
        clip_controls(torch.zeros(1, 5, 2, 3), POSE, GRID)
