# SPDX-License-Identifier: Apache-2.0
"""Assumptions of the kernels for Hopper, measured with the probes of csrc/probes.

    l2_bandwidth          rate at which all multiprocessors together read from the L2 cache, with and without multicast
    shifted_descriptors   wgmma reading a swizzled matrix that starts at any row of a box in shared memory

Each returns an entry of `measurements`, with every number behind its value in "details". `bench.measure_ceilings` runs
them on a GPU of compute capability 9.0 with a build that has AAPT_PROBES=ON.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from aapt_fast.testing.targets import Target
from bench.harness.predictions import measurement

BOX_ROWS, ROW_BYTES = 256, 128  # of a load in csrc/probes/l2_bandwidth.cu

Result = dict[str, Any]


def seconds(target: Target, launch: Callable[[], None], repeats: int, warm_up: int) -> float:
    """Measure the median duration of `launch`: between events on a GPU, by the clock in the emulation."""
    for _ in range(warm_up):
        launch()
    times = []
    for _ in range(repeats):
        if target.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            launch()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
        else:
            began = time.perf_counter()
            launch()
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def multiprocessors(target: Target) -> int:
    """Count those of the GPU; 4 in the emulation."""
    if target.device.type != "cuda":
        return 4
    return torch.cuda.get_device_properties(target.device).multi_processor_count


def l2_bandwidth(
    target: Target, buffer_bytes: int = 20 << 20, loads: int = 4096, repeats: int = 20, warm_up: int = 3
) -> Result:
    """Measure the bytes per second that all multiprocessors receive from a buffer which fits the L2 cache.

    A block per multiprocessor loads boxes of 32 KB, four at a time; at any time the blocks load different ones. With
    multicast two blocks receive what was read once: the cache is read at half of that rate.
    """
    rows = buffer_bytes // ROW_BYTES // BOX_ROWS * BOX_ROWS
    buffer = torch.randint(2**31, (rows, ROW_BYTES // 4), dtype=torch.int32, device=target.device)
    details: dict[str, float] = {}
    for name, multicast in (("plain", 0), ("multicast", 1)):
        blocks = multiprocessors(target) // (1 + multicast) * (1 + multicast)
        out = torch.full((blocks, 4), -1, dtype=torch.int32, device=target.device)

        def launch(blocks: int = blocks, multicast: int = multicast, out: torch.Tensor = out) -> None:
            target.probe("l2_bandwidth", [buffer], [out], [blocks, loads, multicast])

        duration = seconds(target, launch, repeats, warm_up)
        check_last_boxes(buffer, out, loads, 1 + multicast)
        details[f"{name}_tb_per_s"] = blocks * loads * BOX_ROWS * ROW_BYTES / duration / 1e12
        details[f"{name}_ms"] = duration * 1e3
    mebibytes = rows * ROW_BYTES / 2**20
    return measurement(
        "1/l2_bandwidth",
        details["plain_tb_per_s"],
        "TB/s received by all multiprocessors",
        (5.5, 7.0),
        f"tile loads of 32 KB, {loads} per multiprocessor, from {mebibytes:.1f} MiB, median of {repeats}",
        details=details,
    )


def check_last_boxes(buffer: torch.Tensor, out: torch.Tensor, loads: int, cluster: int) -> None:
    """Raise AssertionError unless the last boxes [blocks, 4] of the blocks are those they should have loaded."""
    blocks, stages = out.shape
    boxes = len(buffer) // BOX_ROWS
    last = torch.arange(loads - stages, loads)
    last = last[torch.argsort(last % stages)]  # by stage
    group = torch.arange(blocks)[:, None] // cluster
    box = (last * (blocks // cluster) + group) % boxes
    assert torch.equal(out.cpu(), buffer[:, 0].cpu()[box * BOX_ROWS]), "a block has received another box"


def shifted_descriptors(
    target: Target, shifts: Sequence[int] = range(17), pitches: Sequence[int] = (8, 10, 18)
) -> Result:
    """Count the shifts of A by whole rows of a swizzled box that give the right product, by setting of a descriptor.

    A consists of groups of 8 rows, `pitch` rows apart, from row `shift` on: what a convolution reads from a patch with
    a halo. The setting "zero" leaves the descriptor's pattern row (base offset) 0, as the emulation takes for right;
    "shifted" sets it to shift % 8.
    """
    patch = torch.randn(256, 64, device=target.device).bfloat16()
    b = torch.randn(64, 64, device=target.device).bfloat16()
    right: dict[str, list[bool]] = {"zero": [], "shifted": []}
    wrong: dict[str, list[tuple[int, int]]] = {"zero": [], "shifted": []}
    for pitch in pitches:
        for shift in shifts:
            rows = torch.arange(64) // 8 * pitch + torch.arange(64) % 8 + shift
            expected = patch.double()[rows.to(target.device)] @ b.double().T
            for setting, pattern_row in (("zero", 0), ("shifted", shift % 8)):
                out = torch.full((64, 64), torch.nan, device=target.device)
                target.probe("shifted_rows", [patch, b], [out], [shift, pitch, pattern_row])
                right[setting].append(bool(((out - expected).abs() < 1e-3 * expected.abs().max()).all()))
                if not right[setting][-1]:
                    wrong[setting].append((pitch, shift))
    share = {setting: sum(found) / len(found) for setting, found in right.items()}
    return measurement(
        "6/shifted_descriptors",
        share["zero"],
        "share of (pitch, shift) that are right with pattern row 0",
        (1.0, 1.0),
        f"wgmma m64n64k16 bf16, 128-byte swizzle, shifts {list(shifts)}, pitches {list(pitches)} in rows",
        details={"share_right": share, "wrong_pitch_and_shift": wrong},
    )
