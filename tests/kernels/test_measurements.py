# SPDX-License-Identifier: Apache-2.0
"""The measurements of bench/measure_hardware.py as programs: tiny, and what they compute is right. No times."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

FIELDS = {"name", "value", "unit", "predicted", "verdict", "what_ran", "details"}


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    path = Path(__file__).parents[2] / "bench" / "measure_hardware.py"
    spec = importlib.util.spec_from_file_location("measure_hardware", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("loads", [4, 11])
def test_l2_bandwidth(bench, hopper, loads):
    result = bench.l2_bandwidth(hopper, buffer_bytes=6 * 32 << 10, loads=loads, repeats=1, warm_up=0)
    assert set(result) == FIELDS and json.dumps(result)
    assert result["value"] == result["details"]["plain_tb_per_s"] > 0


@pytest.mark.parametrize("multicast", [0, 1], ids=["plain", "multicast"])
@pytest.mark.parametrize("schedule", range(3), ids=lambda seed: f"schedule {seed}")
def test_blocks_of_the_bandwidth_kernel_receive_their_boxes(bench, hopper, schedule, multicast):
    buffer = torch.randint(2**31, (5 * bench.BOX_ROWS, 32), dtype=torch.int32, device=hopper.device)
    out = torch.full((4, 4), -1, dtype=torch.int32, device=hopper.device)
    hopper.probe("l2_bandwidth", [buffer], [out], [4, 9, multicast], schedule)
    bench.check_last_boxes(buffer, out, 9, 1 + multicast)
    with pytest.raises(AssertionError, match="another box"):
        bench.check_last_boxes(buffer, out, 10, 1 + multicast)


def test_a_grid_has_whole_clusters(bench, hopper):
    buffer = torch.zeros(bench.BOX_ROWS, 32, dtype=torch.int32, device=hopper.device)
    out = torch.zeros(3, 4, dtype=torch.int32, device=hopper.device)
    with pytest.raises(RuntimeError, match=r"emulated launch: expected whole clusters of 2 blocks|cudaLaunchKernelEx"):
        hopper.probe("l2_bandwidth", [buffer], [out], [3, 4, 1])


def test_shifted_descriptors(bench, emulated):
    result = bench.shifted_descriptors(emulated, shifts=[0, 3, 9], pitches=[8, 10])
    assert set(result) == FIELDS and json.dumps(result)
    # By the bits of the address alone: the pattern row says where the pattern starts, which has not moved.
    assert result["details"]["share_right"] == {"zero": 1.0, "shifted": 1 / 3}
    assert result["details"]["wrong_pitch_and_shift"]["shifted"] == [(8, 3), (8, 9), (10, 3), (10, 9)]
