# SPDX-License-Identifier: Apache-2.0
"""aapt::arch, primitive by primitive: what every GPU has, and the barriers and small instructions of Hopper."""

from __future__ import annotations

import numpy
import pytest
import torch

from aapt_fast.ops.kernels import DTYPE_CODES
from aapt_fast.testing.compare import assert_near
from aapt_fast.testing.targets import Target

SCHEDULES = pytest.mark.parametrize("schedule", range(4), ids=lambda seed: f"schedule {seed}")
HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def integers(*shape: int, device: torch.device) -> torch.Tensor:
    return torch.randint(-(2**31), 2**31, shape, device=device).int()


def words(matrices: torch.Tensor) -> torch.Tensor:
    """16-bit numbers [..., 2 n] as int32 [..., n]."""
    return matrices.contiguous().view(torch.int32)


def run_or_error(target: Target, name: str, inputs, outputs, values, schedule: int) -> str:
    """The message of the error that a probe ends with, or nothing."""
    try:
        target.probe(name, inputs, outputs, values, schedule)
    except RuntimeError as error:
        return str(error)
    return ""


def test_dtype_codes_agree(target):
    codes = {str(dtype).removeprefix("torch."): code for dtype, code in DTYPE_CODES.items()}
    assert target.module.dtypes == codes


# ---- every GPU ----


@SCHEDULES
def test_shuffle(target, schedule):
    x, out = integers(128, device=target.device), integers(2, 128, device=target.device)
    target.probe("exchange", [x], [out], [5], schedule)
    lane = torch.arange(32, device=target.device)
    warps = x.view(4, 32)
    assert torch.equal(out[0].view(4, 32), warps[:, (5 * lane + 3) % 32])
    assert torch.equal(out[1].view(4, 32), warps[:, lane ^ 5])


@SCHEDULES
def test_named_barrier(target, schedule):
    x, out = torch.randn(2, 128, device=target.device)
    expected = torch.cat([x[:64], x[96:], x[64:96]])
    target.probe("named_barrier", [x], [out], [0], schedule)
    assert torch.equal(out, expected)


def test_a_missing_named_barrier_shows(emulated):
    x, out = torch.randn(2, 128)
    emulated.probe("named_barrier", [x], [out], [1])
    assert out[32:64].isnan().all()


@SCHEDULES
def test_cp_async_copies_some_bytes_and_clears_the_rest(target, schedule):
    x, out = integers(2, 2, 128, 4, device=target.device)
    target.probe("cp_async", [x], [out], [0], schedule)
    keep = torch.arange(16) < (torch.arange(128) % 17)[:, None]
    assert torch.equal(out.view(torch.uint8).cpu(), torch.where(keep, x.view(torch.uint8).cpu(), 0))


def test_a_missing_wait_for_cp_async_shows(emulated):
    x, out = integers(2, 2, 128, 4, device=emulated.device)
    emulated.probe("cp_async", [x], [out], [1])
    assert (out == -1).all()


@SCHEDULES
@HALF
def test_ldmatrix(target, dtype, schedule):
    x = torch.randn(4, 8, 8, device=target.device).to(dtype)
    out = integers(2, 32, 4, device=target.device)
    target.probe("ldmatrix", [x], [out], [], schedule)
    for result, matrices in zip(out, (x, x.mT), strict=True):
        assert torch.equal(result, words(matrices).view(4, 32).T)


@SCHEDULES
@HALF
def test_mma(target, dtype, schedule):
    a, b = (torch.randn(rows, 16, device=target.device).to(dtype) for rows in (16, 8))
    c, out = torch.randn(2, 16, 8, device=target.device)
    target.probe("mma", [a, b, c], [out], [], schedule)
    assert_near(out, c.double() + a.double() @ b.double().T, 1e-5)


def test_half_precision(target):
    odd = [0.0, -0.0, -130.0, 128.0, 1.00390625, 1.01171875, 65519.0, 65520.0, 3.4e38, 6e-8, 2e-8, 1e-40]
    x = torch.cat([torch.randn(500) * 8, torch.tensor([*odd, torch.inf, -torch.inf, torch.nan])]).to(target.device)
    out = torch.empty(5, len(x), device=target.device)
    target.probe("half_precision", [x], [out], [len(x)])
    power = x[:500].double().exp2()
    assert_near(out[0, :500] / power, torch.ones_like(power), 1e-6, "exp2")
    assert_near(out[1], torch.where(x.abs() < 1.1754e-38, 0 * x, x).double().log2(), 1e-6, "log2 of flushed numbers")
    assert out[0, 502] == 0 and out[0, 503] == torch.inf  # 2^-130 would be subnormal
    for result, dtype in zip(out[2:], (torch.bfloat16, torch.float16, torch.float16), strict=True):
        assert torch.equal(result.nan_to_num(7), x.to(dtype).float().nan_to_num(7)), dtype


def test_arithmetic(target):
    low = torch.randint(1, 2**32, (300,))
    x = torch.randint(0, 2**31, (300,)) << 32 | low
    out = torch.empty(5, 300, dtype=torch.int64, device=target.device)
    target.probe("arithmetic", [x.to(target.device)], [out], [300])
    high, rounded, log, sine, cosine = out.cpu().numpy()
    assert [int(a) * (int(b) >> 32) >> 32 for a, b in zip(low, x, strict=True)] == high.tolist()
    assert rounded.tolist() == low.numpy().astype(numpy.uint32).astype(numpy.float32).astype(numpy.int64).tolist()
    number = low.numpy() / 2**31
    expected = numpy.log(number), numpy.sin(numpy.pi * number), numpy.cos(numpy.pi * number)
    for bits, exact in zip((log, sine, cosine), expected, strict=True):
        numpy.testing.assert_allclose(bits.view(numpy.float64), exact, rtol=1e-14, atol=1e-15)


# ---- barriers in shared memory, bulk copies ----


def ring(target: Target, variant: int, schedule: int) -> tuple[bool, str]:
    """True if the ring of barriers gave the right rows, and the error it ended with."""
    x = torch.randint(-1000, 1000, (9, 32), dtype=torch.int32, device=target.device)
    out = torch.full_like(x, -7)
    error = run_or_error(target, "barrier_ring", [x], [out], [9, variant], schedule)
    return torch.equal(out, 3 * x + 1), error


@SCHEDULES
def test_barrier_ring(hopper, schedule):
    assert ring(hopper, 0, schedule) == (True, "")


@pytest.mark.parametrize("variant", [1, 2], ids=["the consumer does not wait", "the producer does not wait"])
def test_a_missing_wait_for_a_barrier_shows(emulated, variant):
    assert all(ring(emulated, variant, schedule) != (True, "") for schedule in range(6))


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        (3, r"deadlock in block \(0, 0, 0\): 64 threads wait for ever, thread 0 in barrier_wait"),
        (4, r"barrier_wait: unknown barrier, the barrier at byte 288 of shared memory"),
        (5, r"barrier_(arrive|wait): a write over the barrier at byte 256 of shared memory"),
        (6, r"deadlock in block \(0, 0, 0\): 64 threads .* thread 0 in barrier_wait for the barrier at byte 272 of "),
    ],
    ids=["arrivals of others", "unknown barrier", "overwritten barrier", "an arrival missing"],
)
def test_misused_barriers_are_reported(emulated, variant, message):
    with pytest.raises(RuntimeError, match=message):
        emulated.probe("barrier_ring", [integers(9, 32, device=emulated.device)], [torch.empty(9, 32)], [9, variant], 1)


@SCHEDULES
def test_bulk_copy(hopper, schedule):
    x, out = integers(2, 5, 256, device=hopper.device)
    hopper.probe("bulk_copy", [x], [out], [5, 0], schedule)
    assert torch.equal(out, x)


def test_a_missing_wait_for_a_bulk_copy_shows(emulated):
    x, out = integers(2, 5, 256, device=emulated.device)
    emulated.probe("bulk_copy", [x], [out], [5, 1])
    assert (out[0] == -1).all()


def test_too_many_arrivals_are_reported(emulated):
    x = integers(2, 256, device=emulated.device)
    with pytest.raises(
        RuntimeError, match="barrier_arrive: more than the 1 arrivals of a phase at the barrier at byte 1024"
    ):
        emulated.probe("bulk_copy", [x], [torch.empty(2, 256)], [2, 2])


def test_a_bulk_copy_from_an_odd_address_is_reported(emulated):
    x = integers(2 * 256 + 1, device=emulated.device)
    with pytest.raises(RuntimeError, match="bulk_load: expected multiples of 16 bytes, got 1024 bytes from"):
        emulated.probe("bulk_copy", [x[1:].view(2, 256)], [torch.empty(2, 256)], [2, 0])


# ---- clusters ----


def exchange(target: Target, variant: int, schedule: int) -> tuple[bool, str]:
    x = torch.randint(0, 2**20, (4, 128), dtype=torch.int32, device=target.device)
    out = torch.full((4, 3, 128), -7, dtype=torch.int32, device=target.device)
    error = run_or_error(target, "cluster_exchange", [x], [out], [variant], schedule)
    neighbour = x.view(2, 2, 128).flip(1).reshape(4, 128)
    sent = 2 * neighbour + (torch.arange(128, device=target.device) % 4 == 1)
    return torch.equal(out, torch.stack([neighbour, neighbour, sent], 1)), error


@SCHEDULES
def test_cluster_exchange(hopper, schedule):
    assert exchange(hopper, 0, schedule) == (True, "")


@pytest.mark.parametrize("variant", [1, 2], ids=["no barrier of the cluster", "no wait for what was sent"])
def test_a_missing_barrier_of_the_cluster_shows(emulated, variant):
    shown = [exchange(emulated, variant, schedule) != (True, "") for schedule in range(8)]
    assert shown[0] and sum(shown) > 4


def test_a_block_that_ends_too_early_is_reported(emulated):
    errors = [exchange(emulated, 3, schedule)[1] for schedule in range(8)]
    assert any("reached the shared memory of a block that has ended" in error for error in errors)


def test_a_grid_has_whole_clusters(hopper):
    x, out = integers(3, 128, device=hopper.device), integers(3, 3, 128, device=hopper.device)
    with pytest.raises(RuntimeError, match=r"emulated launch: expected whole clusters of 2 blocks|cudaLaunchKernelEx"):
        hopper.probe("cluster_exchange", [x], [out], [0])


# ---- small instructions ----


@SCHEDULES
def test_stmatrix(hopper, schedule):
    x, out = integers(32, 4, device=hopper.device), integers(2, 4, 8, 4, device=hopper.device)
    hopper.probe("matrix_store", [x], [out], [], schedule)
    matrices = x.T.contiguous().view(torch.int16).view(4, 8, 8)
    assert torch.equal(out[0], words(matrices).view(4, 8, 4))
    assert torch.equal(out[1], words(matrices.mT).view(4, 8, 4))


def test_float8(hopper):
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    every = every[every.isfinite()]
    middle = (every[:-1] + every[1:]) / 2
    x = torch.cat([every, middle, torch.randn(800) * 100, torch.tensor([500.0, -1e9, torch.nan])])
    x = torch.cat([x, torch.zeros(-len(x) % 4)]).view(-1, 4).to(hopper.device)
    out, packed = torch.empty_like(x), integers(len(x), device=hopper.device)
    hopper.probe("float8_conversion", [x], [out, packed], [len(x)])
    expected = x.cpu().clamp(-448, 448).to(torch.float8_e4m3fn)
    assert torch.equal(out.cpu().nan_to_num(7), expected.float().nan_to_num(7))
    known = ~x.cpu().isnan()
    assert torch.equal(packed.cpu().view(torch.uint8).view(-1, 4)[known], expected.view(torch.uint8)[known])


@SCHEDULES
def test_elect_one(hopper, schedule):
    out = integers(2, 128, device=hopper.device)
    hopper.probe("elect", [], [out], [], schedule)
    assert torch.equal(out[0], out[1]) and (out.view(2, 4, 32).sum(-1) == 1).all() and out.min() == 0


def test_a_kernel_that_starts_early_waits(hopper):
    x, out = torch.randint(-(2**20), 2**20, (2, 40 * 128), dtype=torch.int32, device=hopper.device)
    hopper.probe("early_start", [x], [out])
    assert torch.equal(out, 2 * x + 1)
