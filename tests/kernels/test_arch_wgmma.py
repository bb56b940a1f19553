# SPDX-License-Identifier: Apache-2.0
"""aapt::arch, wgmma: every width, place of A, major, swizzle and kind of operand; and a whole product."""

from __future__ import annotations

import pytest
import torch

from aapt_fast.testing.compare import assert_near, relative_l2
from aapt_fast.testing.targets import Target

SCHEDULES = pytest.mark.parametrize("schedule", range(3), ids=lambda seed: f"schedule {seed}")
HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
REGISTERS = pytest.mark.parametrize("registers", [0, 1], ids=["A in shared memory", "A in registers"])
WIDTHS = [8, 16, 32, 64, 96, 128, 192, 256]
MAJORS = [(0, 0), (1, 1), (0, 1), (1, 0)]
SWIZZLES = [0, 32, 64, 128]


def operands(dtype: torch.dtype, columns: int, depth: int, target: Target) -> tuple[torch.Tensor, torch.Tensor]:
    """Random A [64, depth] and B [columns, depth]."""
    return tuple(torch.randn(rows, depth, device=target.device).to(dtype) for rows in (64, columns))


def laid_out(matrix: torch.Tensor, mn_major: int) -> torch.Tensor:
    """[rows, K] or, MN-major, [K, rows]; between rows of NaN, 16 bytes apart."""
    matrix = matrix.T if mn_major else matrix
    around = torch.full((matrix.shape[0], matrix.shape[1] + 16), torch.nan, device=matrix.device).to(matrix.dtype)
    around[:, : matrix.shape[1]] = matrix
    return around[:, : matrix.shape[1]]


def product(
    target: Target, a: torch.Tensor, b: torch.Tensor, swizzle: int, majors=(0, 0), registers=0, variant=0, schedule=0
) -> torch.Tensor:
    """A B^T [64, N] by wgmma."""
    out = torch.full((64, len(b)), torch.nan, device=target.device)
    if a.dtype == torch.float8_e4m3fn:
        target.probe("wgmma_float8", [a, b], [out], [variant, swizzle, registers], schedule)
    else:
        a = a if registers else laid_out(a, majors[0])
        values = [variant, swizzle, *majors, registers]
        target.probe("wgmma_half", [a, laid_out(b, majors[1])], [out], values, schedule)
    return out


@HALF
@REGISTERS
@pytest.mark.parametrize("columns", WIDTHS, ids=lambda columns: f"N {columns}")
def test_every_width(hopper, columns, registers, dtype):
    a, b = operands(dtype, columns, 64, hopper)
    for major in (0, 1):
        out = product(hopper, a, b, 128, (0 if registers else major, major), registers, schedule=columns // 8)
        assert_near(out, a.double() @ b.double().T, 1e-5)


@HALF
@pytest.mark.parametrize("swizzle", SWIZZLES, ids=lambda width: f"swizzle {width}")
@pytest.mark.parametrize("majors", MAJORS, ids=["K, K", "MN, MN", "K, MN", "MN, K"])
@SCHEDULES
def test_every_layout(hopper, schedule, majors, swizzle, dtype):
    a, b = operands(dtype, 64, 64, hopper)
    assert_near(product(hopper, a, b, swizzle, majors, schedule=schedule), a.double() @ b.double().T, 1e-5)


@REGISTERS
@pytest.mark.parametrize("columns", WIDTHS, ids=lambda columns: f"N {columns}")
def test_float8(hopper, columns, registers):
    a, b = operands(torch.float8_e4m3fn, columns, 128, hopper)
    for swizzle in SWIZZLES:
        out = product(hopper, a, b, swizzle, registers=registers, schedule=columns // 8)
        assert_near(out, a.double() @ b.double().T, 2e-3)  # tensor cores keep about 14 bits of such a sum


@SCHEDULES
def test_operands_written_by_threads(hopper, schedule):
    a, b = operands(torch.bfloat16, 64, 64, hopper)
    out = torch.full((64, 64), torch.nan, device=hopper.device)
    hopper.probe("wgmma_written", [a, b], [out], [0], schedule)
    assert_near(out, a.double() @ b.double().T, 1e-5)


@SCHEDULES
def test_a_product_with_warps_of_two_kinds(hopper, schedule):
    a = torch.randn(200, 328, device=hopper.device).bfloat16()
    b = torch.randn(136, 328, device=hopper.device).bfloat16()
    out = torch.full((200, 136), torch.nan, device=hopper.device).bfloat16()
    hopper.probe("gemm", [a, b], [out], [0], schedule)
    expected = a.double() @ b.double().T
    assert relative_l2(out, expected) <= 1.1 * relative_l2(expected.bfloat16(), expected)


# ---- planted errors ----


@pytest.mark.parametrize(
    ("variant", "registers"),
    [(1, 0), (1, 1), (3, 0), (3, 1), (4, 1)],
    ids=["accumulators", "accumulators, A in registers", "B", "B, A in registers", "registers of A"],
)
def test_touching_operands_before_the_wait_shows(emulated, variant, registers):
    a, b = operands(torch.bfloat16, 64, 64, emulated)
    expected = a.float() @ b.float().T
    wrong = [
        not torch.allclose(
            product(emulated, a, b, 128, registers=registers, variant=variant, schedule=schedule), expected, atol=1e-3
        )
        for schedule in range(6)
    ]
    assert wrong[0] and any(wrong[1:])


def test_a_missing_wgmma_fence_is_reported(emulated):
    a, b = operands(torch.bfloat16, 64, 64, emulated)
    with pytest.raises(RuntimeError, match="wgmma: expected wgmma_fence before it, and again after wgmma_wait"):
        product(emulated, a, b, 128, variant=2)


@pytest.mark.parametrize("variant", [1, 2], ids=["no fence", "no barrier"])
def test_operands_that_wgmma_does_not_see_yet_show(emulated, variant):
    a, b = operands(torch.bfloat16, 64, 64, emulated)
    for schedule in range(4):
        out = torch.zeros(64, 64)
        emulated.probe("wgmma_written", [a, b], [out], [variant], schedule)
        assert out.isnan().any()


@pytest.mark.parametrize("variant", [1, 2, 3], ids=["no wait for a free stage", "released too early", "no fence"])
def test_errors_of_a_pipeline_show(emulated, variant):
    a, b = torch.randn(64, 512).bfloat16(), torch.randn(64, 512).bfloat16()
    expected = a.double() @ b.double().T
    for schedule in range(3):
        out = torch.full((64, 64), torch.nan).bfloat16()
        try:
            emulated.probe("gemm", [a, b], [out], [variant], schedule)
        except RuntimeError as error:
            assert "more than the 1 arrivals of a phase" in str(error)
            continue
        assert not relative_l2(out, expected) < 0.1
