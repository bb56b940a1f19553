# SPDX-License-Identifier: Apache-2.0
"""aapt::arch: what every GPU has, and barriers in shared memory; and the errors that the emulation shows."""

from __future__ import annotations

import pytest
import torch

from aapt_fast.ops.kernels import DTYPE_CODES
from aapt_fast.testing.compare import assert_near
from aapt_fast.testing.targets import Target

SCHEDULES = pytest.mark.parametrize("schedule", range(4), ids=lambda seed: f"schedule {seed}")
HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def integers(*shape: int, device: torch.device) -> torch.Tensor:
    return torch.randint(-(2**31), 2**31, shape, device=device).int()


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


def exchanged(target: Target, variant: int, schedule: int) -> torch.Tensor:
    """Differences [128] of the probe's numbers to those that its warps should have exchanged; NaN: read too early."""
    x, out = torch.randn(2, 128, device=target.device)
    target.probe("named_barrier", [x], [out], [variant], schedule)
    return out - torch.cat([x[:64], x[96:], x[64:96]])


@SCHEDULES
def test_named_barrier(target, schedule):
    assert (exchanged(target, 0, schedule) == 0).all()


def test_a_missing_named_barrier_shows(emulated):
    shown = [bool(exchanged(emulated, 1, schedule)[32:64].isnan().any()) for schedule in range(8)]
    assert shown[0] and sum(shown) > 4


@SCHEDULES
def test_the_emulation_reports_a_deadlock_and_works_on(emulated, schedule):
    for _ in range(3):
        with pytest.raises(RuntimeError, match=r"deadlock in block \(0, 0, 0\): .* thread 0 in named_barrier_sync"):
            exchanged(emulated, 2, schedule)
    assert (exchanged(emulated, 0, schedule) == 0).all()


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        (3, r"named_barrier_\w+: expected 1\d\d threads, as others have named, at barrier 1, got 1\d\d"),
        (4, "named_barrier_sync: expected whole warps at barrier 3, got a part of warp 0"),
        (
            5,
            r"named_barrier_sync: threads of a warp have diverged: thread \d+ is at portable.cu:\d+, thread \d+ at ",
        ),
        (6, "named_barrier_arrive: expected each warp once in a generation at barrier 1, got warp 3 twice"),
    ],
    ids=["two numbers of threads", "half warps", "two places", "a warp twice"],
)
def test_misused_named_barriers_are_reported(emulated, variant, message):
    with pytest.raises(RuntimeError, match=f"^emulated {message}"):
        exchanged(emulated, variant, schedule=0)


def test_blocks_run_at_the_same_time_in_random_schedules(emulated):
    counts = []
    for schedule in range(4):
        count = torch.zeros(1, dtype=torch.int32)
        emulated.probe("block_counter", [], [count], [8], schedule)
        counts.append(int(count))
    assert counts[0] == 8 and min(counts) < 8


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


def test_random_schedules_land_copies_early_and_late(emulated):
    x, out = integers(2, 2, 128, 4, device=emulated.device)
    emulated.probe("cp_async", [x], [out], [1], schedule=1)
    early = (out[:, 16::17] == x[:, 16::17]).all(-1)  # of the threads that copy 16 bytes
    assert early.any() and (out[:, 16::17][~early] == -1).all() and not early.all()


def test_approximate_functions(target):
    x = torch.cat([torch.randn(500) * 8, torch.tensor([-130.0, 128.0, 1e-40])]).to(target.device)
    out = torch.empty(5, len(x), device=target.device)
    target.probe("half_precision", [x], [out], [len(x)])
    power = x[:500].double().exp2()
    assert_near(out[0, :500] / power, torch.ones_like(power), 1e-6, "exp2")
    assert out[0, 500] == 0 and out[0, 501] == torch.inf  # 2^-130 would be subnormal
    assert_near(out[1], torch.where(x.abs() < 1.1754e-38, 0 * x, x).double().log2(), 1e-6, "log2 of flushed numbers")


# ---- half precision ----


def every_number(dtype: torch.dtype) -> torch.Tensor:
    """All 65536 patterns of a half-precision dtype, as float32."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).float()


def numbers_around_ties(dtype: torch.dtype) -> torch.Tensor:
    """Numbers halfway between two neighbours of a dtype, which are exact in float32, and the float32 next to them."""
    numbers = every_number(dtype)
    numbers = numbers[numbers.isfinite()].sort().values.double()
    ties = ((numbers[1:] + numbers[:-1]) / 2).float()
    infinity = torch.tensor(torch.inf)
    return torch.cat([ties, ties.nextafter(infinity), ties.nextafter(-infinity)])


def special_numbers(dtype: torch.dtype) -> torch.Tensor:
    """The largest and the smallest numbers of a dtype, and those around them."""
    largest, smallest = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal
    step = largest - torch.tensor(largest, dtype=dtype).nextafter(torch.tensor(0, dtype=dtype)).float().item()
    subnormal = smallest * torch.finfo(dtype).eps
    magnitudes = [0.0, torch.inf, torch.nan, largest, largest + 0.49 * step, largest + step / 2, 3e38]
    magnitudes += [smallest, smallest * 0.9999, subnormal, subnormal / 2, subnormal * 0.51, subnormal * 1.5, 1e-45]
    return torch.tensor([*magnitudes, *(-magnitude for magnitude in magnitudes)])


def random_numbers(_: torch.dtype) -> torch.Tensor:
    """Random patterns of float32, with every exponent, infinities and NaN; and random numbers of ordinary sizes."""
    patterns = torch.randint(-(2**31), 2**31, (200_000,)).int().view(torch.float32)
    return torch.cat([patterns, torch.randn(100_000) * torch.logspace(-9, 6, 100_000)])


@HALF
@pytest.mark.parametrize("numbers", [every_number, numbers_around_ties, special_numbers, random_numbers])
def test_rounding_and_widening_equal_torch(target, numbers, dtype):
    """NaN in the same places, and elsewhere the same bits, those of signed zeros included."""
    x = numbers(dtype)
    out = torch.full((5, len(x)), 7.0, device=target.device)
    target.probe("half_precision", [x.to(target.device)], [out], [len(x)])
    expected = x.to(dtype).float()
    for result in [out[2].cpu()] if dtype == torch.bfloat16 else out[3:].cpu():
        assert torch.equal(result.isnan(), expected.isnan())
        different = (result.view(torch.int32) != expected.view(torch.int32)) & ~expected.isnan()
        assert not different.any(), f"{x[different][:5]}: {result[different][:5]}, expected {expected[different][:5]}"


# ---- barriers in shared memory ----


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
