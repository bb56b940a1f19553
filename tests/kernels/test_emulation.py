# SPDX-License-Identifier: Apache-2.0
"""The emulated machine itself: conversions to and from half precision, and the errors in kernels that it must show."""

from __future__ import annotations

import pytest
import torch

from aapt_fast.ops.kernels import view

DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
SCHEDULES = pytest.mark.parametrize("schedule", range(6), ids=lambda seed: f"schedule {seed}")


@pytest.fixture
def emulation(target):
    """The emulated module, with threads in order and late copies."""
    if target.name != "emulated":
        pytest.skip("this is about the emulation")
    target.module.set_schedule(0)
    return target.module


# ---- conversions ----


def widened(emulation, half: torch.Tensor) -> torch.Tensor:
    result = torch.full(half.shape, torch.nan)
    emulation.widen_numbers(view(half), view(result))
    return result


def rounded(emulation, wide: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    result = torch.full(wide.shape, torch.nan, dtype=dtype)
    emulation.round_numbers(view(wide), view(result))
    return result


def every_number(dtype: torch.dtype) -> torch.Tensor:
    """All 65536 patterns of a half-precision dtype."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)


def assert_same_numbers(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """NaN in the same places, and elsewhere the same bits, those of signed zeros included."""
    bits = torch.int32 if actual.dtype == torch.float32 else torch.int16
    assert actual.dtype == expected.dtype and torch.equal(actual.isnan(), expected.isnan())
    number = ~expected.isnan()
    different = (actual.view(bits) != expected.view(bits)) & number
    assert not different.any(), f"{actual[different][:5]}, expected {expected[different][:5]}"


@DTYPES
def test_widening_equals_torch_for_every_number(dtype, emulation):
    assert_same_numbers(widened(emulation, every_number(dtype)), every_number(dtype).float())


@DTYPES
def test_rounding_gives_back_every_number(dtype, emulation):
    assert_same_numbers(rounded(emulation, every_number(dtype).float(), dtype), every_number(dtype))


@DTYPES
def test_rounding_equals_torch_around_every_tie(dtype, emulation):
    numbers = every_number(dtype).float()
    numbers = numbers[numbers.isfinite()].sort().values.double()
    ties = ((numbers[1:] + numbers[:-1]) / 2).float()  # exact in float32
    infinity = torch.tensor(torch.inf)
    around = torch.cat([ties, ties.nextafter(infinity), ties.nextafter(-infinity)])
    assert_same_numbers(rounded(emulation, around, dtype), around.to(dtype))


@DTYPES
def test_rounding_equals_torch_for_random_patterns(dtype, emulation):
    numbers = torch.randint(-(2**31), 2**31, (200_000,)).int().view(torch.float32)  # every exponent, inf and NaN
    ordinary = torch.randn(100_000) * torch.logspace(-9, 6, 100_000)
    for x in (numbers, ordinary):
        assert_same_numbers(rounded(emulation, x, dtype), x.to(dtype))


@DTYPES
def test_rounding_of_special_numbers(dtype, emulation):
    largest, smallest = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal
    step = largest - torch.tensor(largest, dtype=dtype).nextafter(torch.tensor(0, dtype=dtype)).float().item()
    subnormal = smallest * torch.finfo(dtype).eps
    magnitudes = [0.0, torch.inf, torch.nan, largest, largest + 0.49 * step, largest + step / 2, 3e38]
    magnitudes += [smallest, smallest * 0.9999, subnormal, subnormal / 2, subnormal * 0.51, subnormal * 1.5, 1e-45]
    x = torch.tensor([*magnitudes, *(-magnitude for magnitude in magnitudes)])
    result = rounded(emulation, x, dtype)
    assert_same_numbers(result, x.to(dtype))
    assert result[4] == largest and result[5] == torch.inf and result[2].isnan()


# ---- errors in kernels ----


def test_a_barrier_that_some_threads_never_reach_is_an_error(emulation):
    with pytest.raises(RuntimeError, match=r"deadlock in block \(0, 0, 0\): 40 threads wait .* in sync_threads"):
        emulation.run_barrier(threads=64, threads_that_arrive=40)


@SCHEDULES
def test_the_emulation_goes_on_working_after_an_error(schedule, emulation):
    emulation.set_schedule(schedule)
    result = torch.full((96,), -1, dtype=torch.int32)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="deadlock"):
            emulation.run_barrier(threads=96, threads_that_arrive=95)
    emulation.run_barrier(threads=96, threads_that_arrive=96)
    emulation.run_reversal(view(result), synchronise=True)
    assert torch.equal(result, torch.arange(95, -1, -1, dtype=torch.int32))


def copied(emulation, wait: bool) -> tuple[torch.Tensor, torch.Tensor]:
    source, result = torch.randn(32 * 4), torch.zeros(32 * 4)
    emulation.run_copy(view(source), view(result), wait)
    return source, result


def test_a_copy_that_is_read_without_waiting_is_nan(emulation):
    source, result = copied(emulation, wait=False)
    assert source.isfinite().all() and result.isnan().all()


@SCHEDULES
def test_a_copy_that_was_waited_for_is_there(schedule, emulation):
    emulation.set_schedule(schedule)
    source, result = copied(emulation, wait=True)
    assert torch.equal(result, source)


def test_random_schedules_land_copies_early_and_late(emulation):
    emulation.set_schedule(1)
    source, result = copied(emulation, wait=False)
    late = result.isnan()
    assert late.any() and not late.all() and torch.equal(result[~late], source[~late])


@SCHEDULES
def test_a_missing_barrier_shows_in_every_schedule(schedule, emulation):
    emulation.set_schedule(schedule)
    result = torch.zeros(96, dtype=torch.int32)
    emulation.run_reversal(view(result), synchronise=False)
    assert not torch.equal(result, torch.arange(95, -1, -1, dtype=torch.int32))
