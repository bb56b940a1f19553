# SPDX-License-Identifier: Apache-2.0
"""The packing around torch's fused attention, on the CPU with a softmax in float32 in the place of torch's kernels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from aapt_fast.ops import fused_attention, reference
from aapt_fast.ops.fused_attention import pack, torch_kernel
from aapt_fast.testing.attention import packed_attention
from aapt_fast.testing.cases import ABSURD_PAGE, PagedCase, every_second, paged_case, strided
from aapt_fast.testing.compare import assert_near

TABLES = {
    "one slot": [[1]],
    "unused entries between used ones": [[0, 36, 0, 64, 7, 0]],
    "rows of different lengths": [[36, 0, 5], [64, 64, 64], [0, 0, 0], [5, 36, 0]],
    "nothing valid": [[0, 0]],
    "no entries": [[]],
}


def attend(q: Tensor, case: PagedCase, scale: float = 0.25, page_bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    listed = (case.k_pages, case.v_pages, case.page_ids, case.page_valid)
    return fused_attention.paged_attention(q, *listed, scale, page_bias, attend=packed_attention)


def assert_as_reference(
    q: Tensor, case: PagedCase, scale: float = 0.25, page_bias: Tensor | None = None, tolerance: float = 1e-5
) -> None:
    listed = (case.k_pages.float(), case.v_pages.float(), case.page_ids, case.page_valid)
    wanted = reference.paged_attention(q.float(), *listed, scale, page_bias)
    out, lse = attend(q, case, scale, page_bias)
    assert out.dtype == q.dtype and out.is_contiguous()
    assert lse.dtype == torch.float32 and lse.is_contiguous()
    assert_near(out, wanted[0], tolerance if q.dtype == torch.float32 else 2e-2, "out")
    assert_near(lse, wanted[1], tolerance, "lse")


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("heads", [2, 6], ids=["equal heads", "grouped heads"])
def test_it_computes_the_reference(table, heads):
    case = paged_case(table)
    assert_as_reference(torch.randn(len(table), 5, heads, 16), case)


@pytest.mark.parametrize(("rows", "tokens"), [(0, 5), (2, 0)])
def test_no_rows_and_no_queries(rows, tokens):
    case = paged_case([[36, 5]] * max(rows, 1))
    case.page_ids, case.page_valid = case.page_ids[:rows], case.page_valid[:rows]
    assert_as_reference(torch.randn(rows, tokens, 4, 16), case)


@pytest.mark.parametrize("width", [4, 12, 56, 248])
@pytest.mark.parametrize("biased", [False, True], ids=["", "biased"])
def test_heads_are_filled_up_to_a_width_that_the_kernels_take(width, biased):
    case = paged_case([[36, 5], [64, 0]], head_dim=width)
    bias = torch.randn(2, 2) if biased else None
    assert_as_reference(torch.randn(2, 3, 4, width), case, width**-0.5, bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [0.088, -0.3, 0.0])
def test_a_bias_keeps_the_digits_of_float32(dtype, scale):
    case = paged_case([[36, 0, 5, 64], [64, 36, 0, 1]], dtype=dtype)
    bias = torch.tensor([[-20.123, torch.nan, 0.3333, -7.7], [1e-3, 30.0, torch.nan, 29.0]])
    assert_as_reference(torch.randn(2, 3, 4, 16).to(dtype), case, scale, bias, 1e-5)


def test_a_bias_of_minus_infinity_leaves_a_page_out():
    case = paged_case([[36, 5], [64, 9]], dtype=torch.float16)
    bias = torch.tensor([[-torch.inf, 1.0], [-torch.inf, -torch.inf]])
    assert_as_reference(torch.randn(2, 3, 4, 16).half(), case, 0.25, bias)
    bias[0, 0] = -1e9  # beyond float16
    assert_as_reference(torch.randn(2, 3, 4, 16).half(), case, 0.25, bias)


@pytest.mark.parametrize("view", [strided, every_second])
def test_strided_inputs(view):
    case, q = paged_case([[36, 36, 0], [1, 64, 2]]), torch.randn(2, 3, 4, 16)
    expected = attend(q, case)
    case.k_pages, case.v_pages = view(case.k_pages), view(case.v_pages)
    case.page_ids, case.page_valid = strided(case.page_ids), strided(case.page_valid)
    for actual, wanted in zip(attend(view(q), case), expected, strict=True):
        assert torch.equal(actual, wanted)


def test_queries_begin_at_a_multiple_of_16_bytes():
    def kernel(q: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
        assert q.is_contiguous() and q.data_ptr() % 16 == 0
        return packed_attention(q, *rest)

    case, memory = paged_case([[36]]), torch.randn(1 + 3 * 2 * 16)
    q = memory[1:].view(1, 3, 2, 16)
    assert q.is_contiguous() and q.data_ptr() % 16
    listed = (case.k_pages, case.v_pages, case.page_ids, case.page_valid)
    out, _ = fused_attention.paged_attention(q, *listed, 0.25, attend=kernel)
    assert_near(out, reference.paged_attention(q, *listed, 0.25)[0], 1e-5)


@pytest.mark.parametrize(
    ("page", "count"), [(ABSURD_PAGE, 3), (-1, 3), (6, 64), (0, 65), (0, -1)], ids=lambda value: str(value)
)
def test_a_bad_value_in_the_table_reads_nothing_and_makes_its_row_nan(page, count):
    case, q = paged_case([[36, 5], [64, 7]]), torch.randn(2, 3, 4, 16)
    expected = attend(q, case)
    assert len(case.k_pages) == 6
    case.page_ids[1, 1], case.page_valid[1, 1] = page, count
    out, lse = attend(q, case)
    assert out[1].isnan().all() and lse[1].isnan().all()
    assert torch.equal(out[0], expected[0][0]) and torch.equal(lse[0], expected[1][0])
    rows = pack(case.page_ids, case.page_valid, 6)
    assert rows.starts.tolist() == [0, 41, 41] and rows.empty.tolist() == [False, True] and rows.filler[1].isnan()


def test_packed_slots_are_those_of_the_table_in_its_order():
    ids = torch.tensor([[2, ABSURD_PAGE, 0], [1, 3, -7]], dtype=torch.int32)
    valid = torch.tensor([[2, 0, 3], [1, 64, 0]], dtype=torch.int32)
    rows = pack(ids, valid, 4)
    used = [128, 129, 0, 1, 2, 64, *range(192, 256)]
    assert rows.slots.tolist() == used + [0] * (6 * 64 - len(used))
    assert rows.entries[: len(used)].tolist() == [0, 0, 2, 2, 2, 3, *[4] * 64]
    assert rows.starts.tolist() == [0, 5, 70] and rows.starts.dtype == torch.int32
    assert rows.filler.tolist() == [0, 0] and not rows.empty.any()


def test_rows_that_were_packed_before_give_the_same():
    case, q = paged_case([[36, 0, 5], [64, 64, 64], [0, 0, 0]]), torch.randn(3, 5, 4, 16)
    listed = (case.k_pages, case.v_pages, case.page_ids, case.page_valid)
    expected = attend(q, case)
    packed = pack(case.page_ids, case.page_valid, len(case.k_pages))
    case.page_ids.fill_(ABSURD_PAGE)  # not read any more
    found = fused_attention.paged_attention(q, *listed, 0.25, packed=packed, attend=packed_attention)
    for actual, wanted in zip(found, expected, strict=True):
        assert torch.equal(actual, wanted)


KERNELS = [
    (torch.bfloat16, 128, (9, 0), "flash"),
    (torch.float16, 56, (8, 0), "flash"),
    (torch.bfloat16, 256, (12, 0), "flash"),
    (torch.bfloat16, 264, (9, 0), "efficient"),
    (torch.float32, 64, (9, 0), "efficient"),
    (torch.float16, 64, (7, 5), "efficient"),
    (torch.bfloat16, 64, (7, 5), "efficient in float32"),
]


@pytest.mark.parametrize(("dtype", "width", "capability", "kernel"), KERNELS, ids=str)
def test_the_kernel_fits_dtype_width_and_gpu(dtype, width, capability, kernel, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    names = {
        "flash": "_flash_attention",
        "efficient": "_efficient_attention",
        "efficient in float32": "_efficient_attention_in_float32",
    }
    assert torch_kernel(torch.empty(3, 2, width, dtype=dtype)) is getattr(fused_attention, names[kernel])


def test_a_torch_without_flash_attention_uses_the_other_kernel(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    assert torch_kernel(torch.empty(3, 2, 64).half()) is fused_attention._efficient_attention
