# SPDX-License-Identifier: Apache-2.0
"""aapt::arch, the copy engine: boxes of rank 1 to 5, every swizzle, outside of the tensor, to clusters and back."""

from __future__ import annotations

import pytest
import torch

from aapt_fast.testing.targets import Target

SCHEDULES = pytest.mark.parametrize("schedule", range(3), ids=lambda seed: f"schedule {seed}")
SWIZZLES = pytest.mark.parametrize("swizzle", [0, 32, 64, 128], ids=lambda width: f"swizzle {width}")
BOXES = {1: (), 2: (9,), 3: (2, 5), 4: (2, 3, 4), 5: (2, 1, 3, 2)}
"""Sizes of a box but for the last one, by rank."""

SIZES = {1: (), 2: (13,), 3: (3, 7), 4: (3, 4, 5), 5: (3, 2, 4, 3)}
"""Those of the tensors."""

FIRST = {1: (), 2: (6,), 3: (1, -2), 4: (2, -1, 3), 5: (-1, 0, 2, 1)}
"""Starts of boxes: partly outside."""

DTYPES = {
    1: torch.bfloat16,
    2: torch.float16,
    3: torch.float16,
    4: torch.float32,
    5: torch.bfloat16,
}


class Case:
    """A tensor in the middle of NaN, and a box that leaves it at two ends."""

    def __init__(self, rank: int, swizzle: int, device: torch.device, fill: bool = True) -> None:
        dtype = DTYPES[rank]
        bytes_each = dtype.itemsize
        row = (swizzle or 48) // bytes_each
        size = (*SIZES[rank], 2 * row - 3)
        around = torch.full((*(n + 1 for n in size[:-1]), 3 * row), torch.nan).to(dtype).to(device)
        self.tensor = around[tuple(slice(n) for n in size)]
        if fill:
            self.tensor.copy_(torch.randn(size).to(dtype))
        self.around = around
        self.swizzle = swizzle
        self.box = (*BOXES[rank], row)
        self.first = (*FIRST[rank], row + 1)
        self.values = [swizzle, *self.box, *self.first]

    def expected(self) -> torch.Tensor:
        """The bytes of the box [n] as they shall lie in shared memory."""
        box = torch.zeros(self.box, dtype=torch.float32).to(self.tensor.dtype)
        inside = [
            (max(first, 0), min(first + extent, size))
            for first, extent, size in zip(self.first, self.box, self.tensor.shape, strict=True)
        ]
        target = tuple(slice(a - first, b - first) for (a, b), first in zip(inside, self.first, strict=True))
        box[target] = self.tensor[tuple(slice(a, b) for a, b in inside)].cpu()
        return swizzled(box.view(torch.uint8).flatten(), self.swizzle)


def swizzled(box: torch.Tensor, swizzle: int) -> torch.Tensor:
    """Bytes [n] with their 16-byte pieces permuted; the same again undoes it."""
    offset = torch.arange(0, len(box), 16)
    moved = offset ^ ((offset >> 7) % max(swizzle // 16, 1) << 4)
    assert moved.max() < len(box)
    return box.view(-1, 16)[moved // 16].flatten()


@pytest.mark.parametrize("rank", range(1, 6), ids=lambda rank: f"rank {rank}")
@SWIZZLES
@SCHEDULES
def test_tile_load(hopper, schedule, swizzle, rank):
    case = Case(rank, swizzle, hopper.device)
    expected = case.expected()
    out = torch.full((len(expected),), 77, dtype=torch.uint8, device=hopper.device).view(torch.int32)
    hopper.probe("tile_load", [case.tensor], [out], [0, *case.values], schedule)
    assert torch.equal(out.view(torch.uint8).cpu(), expected)


@pytest.mark.parametrize("rank", range(1, 6), ids=lambda rank: f"rank {rank}")
@SWIZZLES
@SCHEDULES
def test_tile_store(hopper, schedule, swizzle, rank):
    source, case = Case(rank, swizzle, hopper.device), Case(rank, swizzle, hopper.device, fill=False)
    hopper.probe("tile_store", [source.expected().to(hopper.device)], [case.tensor], [0, *case.values], schedule)
    outside = torch.ones(case.tensor.shape, dtype=torch.bool)
    region = tuple(slice(max(f, 0), f + n) for f, n in zip(case.first, case.box, strict=True))
    outside[region] = False
    wanted = source.tensor.float().cpu()
    wanted[outside] = torch.nan
    assert torch.equal(case.tensor.float().cpu().nan_to_num(1e9), wanted.nan_to_num(1e9))
    assert int(case.around.float().isfinite().sum()) == int((~outside).sum())  # nothing was written around it


@pytest.mark.parametrize("rank", [2, 3], ids=lambda rank: f"rank {rank}")
@SCHEDULES
def test_tile_multicast(hopper, schedule, rank):
    case = Case(rank, 64, hopper.device)
    case.first = (-1, *case.first[1:])
    case.values[-rank] = -1
    boxes = []
    for _ in range(2):
        boxes.append(case.expected())
        case.first = (case.first[0] + case.box[0], *case.first[1:])
    both = torch.cat(boxes)
    out = torch.full((2, len(both)), 77, dtype=torch.uint8, device=hopper.device)
    hopper.probe("tile_multicast", [case.tensor], [out], [0, *case.values], schedule)
    assert torch.equal(out.cpu(), torch.stack([both, both]))


def ring(target: Target, rows: int, variant: int = 0, schedule: int = 0) -> bool:
    """True if both blocks of a cluster have seen the rows that come to both at once."""
    x = torch.randint(2**31 - 1, (rows, 64), dtype=torch.int32, device=target.device)
    out = torch.zeros(2, rows, 64, dtype=torch.int32, device=target.device)
    target.probe("multicast_ring", [x], [out], [rows, variant], schedule)
    return torch.equal(out, torch.stack([x, x]))


@SCHEDULES
@pytest.mark.parametrize("rows", [1, 2, 3, 20])
def test_multicast_ring(hopper, schedule, rows):
    assert ring(hopper, rows, schedule=schedule)


# ---- planted errors ----


def load(target: Target, variant: int, schedule: int = 0) -> torch.Tensor:
    case = Case(2, 128, target.device)
    out = torch.zeros(len(case.expected()), dtype=torch.uint8)
    target.probe("tile_load", [case.tensor], [out], [variant, *case.values], schedule)
    return out


def test_a_missing_wait_for_a_load_shows(emulated):
    assert (load(emulated, 1) == 255).all()


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        (2, "copy: reached the shared memory of a block that has ended"),
        (3, "tile_load: no barrier_init_fence for the barrier at byte 33792"),
        (4, "tile_load: expected a place in shared memory that is a multiple of 1024, got 128"),
        (5, "tile_load: expected a place within 33800 bytes of shared memory, got 1152 bytes at 32768"),
        (6, "barrier_arrive: more than the 1 arrivals of a phase at the barrier at byte 33792"),
        (7, "tile_load: it does not see what a thread wrote near byte 0 of shared memory: expected fence_proxy_async"),
    ],
    ids=[
        "no bytes announced",
        "no fence of the barrier",
        "misaligned box",
        "outside of shared memory",
        "an arrival too many",
        "over a write without a fence",
    ],
)
def test_misused_loads_are_reported(emulated, variant, message):
    with pytest.raises(RuntimeError, match=message):
        load(emulated, variant)


def store(target: Target, variant: int, schedule: int) -> torch.Tensor:
    """The difference to the right result, [13, n] with NaN where nothing or NaN was written."""
    source, case = Case(2, 128, target.device), Case(2, 128, target.device, fill=False)
    target.probe("tile_store", [source.expected()], [case.tensor], [variant, *case.values], schedule)
    return (case.tensor - source.tensor)[6:, case.first[1] :]


@SCHEDULES
def test_a_missing_fence_before_a_store_is_reported(emulated, schedule):
    with pytest.raises(RuntimeError, match="tile_store: it does not see what a thread wrote near byte"):
        store(emulated, 1, schedule)
    assert (store(emulated, 0, schedule) == 0).all()


def test_a_missing_wait_for_a_store_shows(emulated):
    def shows(schedule: int) -> bool:
        try:
            return bool((store(emulated, 2, schedule) != 0).any())
        except RuntimeError as error:
            assert "tile_store: a thread wrote near byte" in str(error)
            return True

    assert shows(0) and any(shows(schedule) for schedule in range(1, 6))


def test_an_end_before_a_store_was_read_is_reported(emulated):
    with pytest.raises(RuntimeError, match="tile_store: a thread ended without store_commit and store_wait_read"):
        store(emulated, 3, 0)


def test_multicast_counts_bytes_in_each_block(emulated):
    case = Case(2, 64, emulated.device)
    out = torch.zeros(2, 2 * len(case.expected()), dtype=torch.uint8)
    emulated.probe("tile_multicast", [case.tensor], [out], [1, *case.values])
    length = len(case.expected())
    for block, absent in enumerate((slice(length, None), slice(0, length))):
        assert (out[block, absent] == 255).all()


@pytest.mark.parametrize("variant", [1, 2, 3], ids=["own block only", "no wait for a release", "an early end"])
def test_a_multicast_into_a_stage_in_use_shows(emulated, variant):
    def correct(schedule: int) -> bool:
        try:
            return ring(emulated, 20, variant, schedule)
        except RuntimeError as error:
            assert str(error).startswith("emulated ")
            return False

    assert not all(correct(schedule) for schedule in range(8))


@SCHEDULES
def test_a_dimension_of_one_element_may_have_any_stride(hopper, schedule):
    case = Case(3, 64, hopper.device)
    rows = case.tensor[0]
    case.tensor = rows.as_strided((1, *rows.shape), (3, *rows.stride()))
    case.first = (0, *case.first[1:])
    case.values[-3] = 0
    expected = case.expected()
    out = torch.full((len(expected),), 77, dtype=torch.uint8, device=hopper.device).view(torch.int32)
    hopper.probe("tile_load", [case.tensor], [out], [0, *case.values], schedule)
    assert torch.equal(out.view(torch.uint8).cpu(), expected)


def spread(stride: int) -> torch.Tensor:
    """A tensor [2, 64] with this stride, in elements of 4 bytes, and no memory."""
    return torch.empty_strided((2, 64), (stride, 1), device="meta")


STRIDE = "stride of dimension 0: expected a positive multiple of 16 bytes below 2.40"


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(13, 63), f"{STRIDE}, got 252"),
        (torch.zeros(1, 64).expand(13, 64), f"{STRIDE}, got 0"),
        (spread(2**38), f"{STRIDE}, got {2**40}"),
    ],
    ids=["no multiple of 16 bytes", "expanded", "2^40 bytes"],
)
def test_strides_that_only_the_copy_engine_does_not_take_are_left_to_other_kernels(target, tensor, message):
    tensor = tensor if tensor.is_meta else tensor.to(target.device)
    with pytest.raises(target.probes.Unsupported, match=f"^inputs\\[0\\], {message}"):
        target.probe("tile_load", [tensor], [tensor], [0, 0, 2, 8, 0, 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tensor": torch.zeros(13, 64)[:, 1:]}, "expected an address that is a multiple of 16, got 4 modulo 16"),
        ({"tensor": torch.zeros(64, 13).T}, "stride of dimension 1: expected 1: adjacent elements, got 13"),
        ({"tensor": torch.zeros(0, 64)}, "size of dimension 0: expected 1 to 2.32 elements, got 0"),
        ({"tensor": torch.zeros(13, 64).long()}, "expected elements of 2 or 4 bytes, got int64"),
        ({"box": (257, 4)}, "box of dimension 0: expected 1 to 256 elements, got 257"),
        ({"box": (4, 3)}, "expected a box with rows of a multiple of 16 bytes, got 12"),
        ({"box": (4, 12), "swizzle": 32}, "expected a box with rows of 32 bytes, the width of its swizzle, got 48"),
    ],
    ids=["address", "not dense", "empty", "dtype", "box", "rows of the box", "swizzle"],
)
def test_maps_that_break_a_rule_are_refused(target, change, message):
    tensor = change.get("tensor", torch.zeros(13, 64)).to(target.device)
    box, swizzle = change.get("box", (4, 8)), change.get("swizzle", 0)
    with pytest.raises(ValueError, match=f"^inputs\\[0\\][:,] {message}"):
        target.probe("tile_load", [tensor], [tensor], [0, swizzle, *box, 0, 0])


def encode(target: Target, tensor: torch.Tensor, box: tuple[int, ...], swizzle: int = 0) -> None:
    """Make a map with the driver's checks alone; the emulation has its own copy of these."""
    target.probe("encode_tensor_map", [tensor], [], [swizzle, *box])


@pytest.mark.parametrize(
    ("tensor", "box", "swizzle", "message"),
    [
        (torch.zeros(13, 63), (4, 8), 0, r"globalStrides\[0\]: expected a multiple of 16, got 252"),
        (spread(2**38), (2, 8), 0, rf"globalStrides\[0\]: expected less than 2\^40, got {2**40}"),
        (torch.zeros(1, 64).expand(13, 64), (4, 8), 0, r"globalStrides\[0\]: expected more than 0, got 0"),
        (torch.zeros(13, 64)[:, 1:], (4, 8), 0, r"globalAddress: expected a multiple of 16, got \d+"),
        (torch.zeros(0, 64), (4, 8), 0, r"globalDim\[1\]: expected 1 to 2\^32, got 0"),
        (torch.zeros(13, 64), (257, 4), 0, r"boxDim\[1\]: expected 1 to 256, got 257"),
        (torch.zeros(13, 64), (0, 4), 0, r"boxDim\[1\]: expected 1 to 256, got 0"),
        (torch.zeros(13, 64), (4, 3), 0, "bytes of a row of the box: expected a multiple of 16, got 12"),
        (
            torch.zeros(13, 64),
            (4, 12),
            32,
            "bytes of a row of the box: expected at most the width of the swizzle, got 48",
        ),
        (torch.zeros(13, 64), (4, 4), 96, "swizzle: expected 0, 32, 64 or 128, got 96"),
        (torch.zeros(1, 1, 1, 1, 1, 8), (1, 1, 1, 1, 1, 8), 0, "tensorRank: expected 1 to 5, got 6"),
    ],
    ids=[
        "stride",
        "2^40 bytes",
        "expanded",
        "address",
        "empty",
        "a large box",
        "an empty box",
        "rows of the box",
        "wider than the swizzle",
        "swizzle",
        "rank",
    ],
)
def test_the_emulated_driver_keeps_the_documented_rules(emulated, tensor, box, swizzle, message):
    with pytest.raises(RuntimeError, match=rf"^cuTensorMapEncodeTiled \(emulated\): {message}"):
        encode(emulated, tensor, box, swizzle)


def test_the_driver_takes_what_the_rules_allow(hopper):
    tensor = torch.zeros(13, 64, device=hopper.device)
    encode(hopper, tensor, (4, 8), 32)
    encode(hopper, tensor, (4, 4), 128)  # narrower than the swizzle
    encode(hopper, tensor[:1].expand(1, 64), (1, 4))  # one row


def test_a_map_has_one_to_five_dimensions(target):
    tensor = torch.zeros(1, 1, 1, 1, 1, 8, device=target.device)
    with pytest.raises(ValueError, match="inputs\\[0\\]: expected 1 to 5 dimensions, got 6"):
        target.probe("tile_load", [tensor], [tensor], [0, 0, *tensor.shape, *([0] * 6)])
