# SPDX-License-Identifier: Apache-2.0
"""The edge cases are right for torch's own code and for the kernels, and find what they are for."""

from __future__ import annotations

import pytest
import torch

from aapt_fast.ops import PAGE_SLOTS
from aapt_fast.ops.kernels import KERNELS, use_kernels
from aapt_fast.verification.case import Setting
from aapt_fast.verification.edge_cases import EDGE_CASES, EdgeCase
from aapt_fast.verification.hostile import ABSURD_PAGE
from aapt_fast.verification.judge import require_right

OPS = pytest.mark.parametrize("op", EDGE_CASES)


def edge_cases(op: str, dtype: torch.dtype | None = None) -> list[EdgeCase]:
    kernel = KERNELS[f"{op}/portable"]
    setting = Setting(torch.device("cpu"), dtype or kernel.dtypes[0])
    return list(EDGE_CASES[op](setting, kernel.widths[0] if kernel.widths else None))


def test_every_op_with_kernels_has_edge_cases() -> None:
    assert {kernel.op for kernel in KERNELS.values()} == set(EDGE_CASES)


@OPS
def test_torch_code_passes_again_and_again(op: str) -> None:
    for case in edge_cases(op, torch.float32):
        with torch.no_grad(), use_kernels("none"):
            for _ in range(2):
                require_right(case.call(), case)


@OPS
def test_a_result_that_is_wrong_in_one_number_is_found(op: str) -> None:
    found = 0
    for case in edge_cases(op):
        with torch.no_grad(), use_kernels("none"):
            results = case.call()
        for result in results:
            if result.isfinite().any():
                first = tuple(result.isfinite().nonzero()[0])
                result[first] += 0.3 + 0.1 * result[result.isfinite()].abs().max()
                with pytest.raises(ValueError, match="an error of at most"):
                    require_right(results, case)
                found += 1
                break
    assert found >= 4


def test_lengths_lie_around_a_page() -> None:
    for op in ("paged_attention", "kv_write", "gate_residual_norm"):
        lengths = {case.inputs[0].shape[1] for case in edge_cases(op)}
        assert {0, 1, PAGE_SLOTS - 1, PAGE_SLOTS, PAGE_SLOTS + 1} <= lengths


def test_entries_that_must_not_be_read_are_absurd_and_other_slots_are_nan() -> None:
    case = next(case for case in edge_cases("paged_attention") if "bias" in case.name)
    _, k_pages, v_pages, ids, valid, bias = case.inputs
    assert (ids[valid == 0] == ABSURD_PAGE).all() and bias[valid == 0].isnan().all()
    for pages in (k_pages, v_pages):
        readable = torch.zeros(pages.shape[:2], dtype=torch.bool)
        for page, count in zip(ids[valid > 0].tolist(), valid[valid > 0].tolist(), strict=True):
            readable[page, :count] = True
        assert pages[~readable].isnan().all() and pages[readable].isfinite().all()


def test_a_write_to_a_slot_of_no_token_is_found() -> None:
    case = next(case for case in edge_cases("kv_write") if case.name == "65 tokens")
    with use_kernels("none"):
        queries, k_pages, v_pages = case.call()
    untouched = tuple(v_pages.isnan().nonzero()[0])
    v_pages[untouched] = 0
    with pytest.raises(ValueError, match=r"output 2: .* got nan"):
        require_right((queries, k_pages, v_pages), case)


def test_results_of_another_shape_are_wrong() -> None:
    case = edge_cases("clean_frame")[0]
    with pytest.raises(ValueError, match=r"output 0: expected shape \[2, 16, 1, 2, 2\], got \[2\]"):
        require_right((torch.zeros(2),), case)
