# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy
import pytest
import torch

from aapt_fast.models.config import ControlConfig
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
        (None, TypeError, "control: expected Tensor, got NoneType"),
        ([[0.0] * 3] * 3, TypeError, "control: expected Tensor, got list"),
        ("left", TypeError, "control: expected Tensor, got str"),
        (torch.zeros(4, 3), ValueError, r"control: expected shape \[3, 3\], got \[4, 3\]"),
        (torch.zeros(3, 3, 3), ValueError, r"control: expected shape \[4, 3, 3\], got \[3, 3, 3\]"),
        (torch.zeros(()), ValueError, r"control: expected shape \[4, 3, 3\], got \[\]"),
        (torch.zeros(3, 3, dtype=torch.int64), ValueError, "control: expected a floating-point tensor"),
        (torch.full((3, 3), torch.nan), ValueError, "control: expected finite values"),
        (torch.full((3, 3), -torch.inf), ValueError, "control: expected finite values"),
        (numpy.full((3, 3), 1e300), ValueError, "control: expected finite values"),  # not in float32
    ],
    ids=lambda value: "" if isinstance(value, type) else None,
)
def test_bad_controls(control, error, message):
    with pytest.raises(error, match=message):
        step_entries(control, POSE, GRID)


def test_bad_clips():
    with pytest.raises(ValueError, match=r"points: expected 1 \+ 4 n video frames, got 8"):
        clip_controls(torch.zeros(1, 8, 3, 3), POSE, GRID)
    with pytest.raises(ValueError, match="points: expected shape"):
        clip_controls(torch.zeros(1, 5, 2, 3), POSE, GRID)
