# SPDX-License-Identifier: Apache-2.0
"""aapt::arch, wgmma: every width, dtype, place of A, major of B and swizzle."""

from __future__ import annotations

import pytest
import torch

from aapt_fast.testing.compare import assert_near
from aapt_fast.testing.targets import Target

SCHEDULES = pytest.mark.parametrize("schedule", range(3), ids=lambda seed: f"schedule {seed}")
HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
REGISTERS = pytest.mark.parametrize("registers", [0, 1], ids=["A in shared memory", "A in registers"])
MAJORS = pytest.mark.parametrize("mn_major", [0, 1], ids=["B K-major", "B MN-major"])


def operands(dtype: torch.dtype, columns: int, target: Target) -> tuple[torch.Tensor, torch.Tensor]:
    """Random A [64, 64] and B [columns, 64]."""
    return tuple(torch.randn(rows, 64, device=target.device).to(dtype) for rows in (64, columns))


def laid_out(matrix: torch.Tensor, mn_major: int) -> torch.Tensor:
    """[rows, K] or, MN-major, [K, rows]; between rows of NaN, 16 bytes apart."""
    matrix = matrix.T if mn_major else matrix
    around = torch.full((matrix.shape[0], matrix.shape[1] + 16), torch.nan, device=matrix.device).to(matrix.dtype)
    around[:, : matrix.shape[1]] = matrix
    return around[:, : matrix.shape[1]]


def product(
    target: Target, a: torch.Tensor, b: torch.Tensor, swizzle: int, mn_major=0, registers=0, variant=0, schedule=0
) -> torch.Tensor:
    """A B^T [64, N] by wgmma."""
    out = torch.full((64, len(b)), torch.nan, device=target.device)
    a = a if registers else laid_out(a, 0)
    target.probe("wgmma", [a, laid_out(b, mn_major)], [out], [variant, swizzle, mn_major, registers], schedule)
    return out


@HALF
@REGISTERS
@MAJORS
@pytest.mark.parametrize("columns", [64, 96, 128, 192, 256], ids=lambda columns: f"N {columns}")
def test_every_width(hopper, columns, mn_major, registers, dtype):
    a, b = operands(dtype, columns, hopper)
    out = product(hopper, a, b, 128, mn_major, registers, schedule=columns // 8)
    assert_near(out, a.double() @ b.double().T, 1e-5)


@HALF
@pytest.mark.parametrize("swizzle", [0, 32, 64, 128], ids=lambda width: f"swizzle {width}")
@MAJORS
@SCHEDULES
def test_every_layout(hopper, schedule, mn_major, swizzle, dtype):
    a, b = operands(dtype, 64, hopper)
    assert_near(product(hopper, a, b, swizzle, mn_major, schedule=schedule), a.double() @ b.double().T, 1e-5)


@SCHEDULES
def test_operands_written_by_threads(hopper, schedule):
    a, b = operands(torch.bfloat16, 64, hopper)
    out = torch.full((64, 64), torch.nan, device=hopper.device)
    hopper.probe("wgmma_written", [a, b], [out], [0], schedule)
    assert_near(out, a.double() @ b.double().T, 1e-5)


# ---- planted errors ----


@pytest.mark.parametrize(
    ("variant", "registers"),
    [(1, 0), (1, 1), (3, 0), (3, 1), (4, 1)],
    ids=["accumulators", "accumulators, A in registers", "B", "B, A in registers", "registers of A"],
)
def test_touching_operands_before_the_wait_shows(emulated, variant, registers):
    a, b = operands(torch.bfloat16, 64, emulated)
    expected = a.float() @ b.float().T

    def shows(schedule: int) -> bool:
        try:
            out = product(emulated, a, b, 128, registers=registers, variant=variant, schedule=schedule)
        except RuntimeError as error:
            assert "a thread wrote near byte 8192" in str(error)
            return True
        return not torch.allclose(out, expected, atol=1e-3)

    assert shows(0) and any(shows(schedule) for schedule in range(1, 6))


@REGISTERS
@SCHEDULES
def test_a_copy_to_what_a_product_reads_is_reported(emulated, schedule, registers):
    a, b = operands(torch.bfloat16, 64, emulated)
    with pytest.raises(RuntimeError, match=r"tile_load: it writes near byte \d+ of shared memory, which a product or"):
        product(emulated, a, b, 128, registers=registers, variant=5, schedule=schedule)


@SCHEDULES
def test_threads_of_a_warp_that_open_a_product_at_two_places_are_reported(emulated, schedule):
    a, b = operands(torch.bfloat16, 64, emulated)
    with pytest.raises(RuntimeError, match=r"wgmma_fence: threads of a warp have diverged: thread \d+ is at wgmma.cu:"):
        product(emulated, a, b, 128, variant=6, schedule=schedule)


def test_a_missing_wgmma_fence_is_reported(emulated):
    a, b = operands(torch.bfloat16, 64, emulated)
    with pytest.raises(RuntimeError, match="wgmma: expected wgmma_fence before it, and again after wgmma_wait"):
        product(emulated, a, b, 128, variant=2)


@SCHEDULES
@pytest.mark.parametrize("variant", [1, 2], ids=["no fence", "no barrier"])
def test_operands_that_wgmma_does_not_see_yet_are_reported(emulated, variant, schedule):
    a, b = operands(torch.bfloat16, 64, emulated)
    with pytest.raises(RuntimeError, match="wgmma: it does not see what a thread wrote near byte 0 of shared memory"):
        emulated.probe("wgmma_written", [a, b], [torch.zeros(64, 64)], [variant], schedule)
