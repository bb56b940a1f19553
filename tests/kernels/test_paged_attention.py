# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from aapt_fast.ops import paged_attention, reference
from aapt_fast.testing.cases import PagedCase, paged_case
from aapt_fast.testing.compare import assert_near, assert_within_twice_torch

DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
WIDTHS = pytest.mark.parametrize("width", [64, 128], ids=lambda width: f"D {width}")
SCHEDULES = pytest.mark.parametrize("schedule", range(4), ids=lambda seed: f"schedule {seed}")
KERNEL = "paged_attention/portable"
TABLES = {
    "one slot": [[1]],
    "63, 64 and 65 slots": [[63, 0, 0], [64, 0, 0], [64, 1, 0]],
    "frames of 65": [[64, 1, 64, 1, 0]],
    "unused entries between used ones": [[0, 36, 0, 64, 7, 0]],
    "rows of different patterns": [[36, 0, 5], [64, 64, 64], [0, 0, 0], [5, 36, 0]],
    "nothing valid": [[0, 0]],
    "no entries": [[]],
}


def check(q: torch.Tensor, case: PagedCase, target, schedule: int = 0, scale: float | None = None, bias=None) -> None:
    """The kernel is within twice torch's own error of the reference in float32, out and lse."""
    table = (case.page_ids, case.page_valid)
    with target.kernels(KERNEL, schedule=schedule):
        out, lse = paged_attention(q, case.k_pages, case.v_pages, *table, scale, bias)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    oracle, oracle_lse = reference.paged_attention(q.float(), case.k_pages, case.v_pages, *table, scale, bias)
    assert out.dtype == q.dtype and out.is_contiguous() and lse.dtype == torch.float32
    assert_within_twice_torch(out, oracle, plain_torch(q, case, scale, bias))
    assert_near(lse, oracle_lse, 1e-5, "lse")


def plain_torch(q: torch.Tensor, case: PagedCase, scale: float, bias: torch.Tensor | None) -> torch.Tensor:
    """What a user of torch would write, every operation rounded to the dtype of `q`: [B, N, H, D]."""
    out = torch.zeros_like(q)
    for row, (keys, values) in enumerate(zip(case.keys, case.values, strict=True)):
        if not len(keys):
            continue
        group = q.shape[2] // keys.shape[1]
        keys, values = (x.repeat_interleave(group, 1).transpose(0, 1) for x in (keys, values))  # [H, S, D]
        scores = q[row].transpose(0, 1) @ keys.transpose(1, 2) * scale
        if bias is not None:
            scores = scores + bias[row].repeat_interleave(case.page_valid[row]).to(q.dtype)
        out[row] = (scores.softmax(-1) @ values).transpose(0, 1)
    return out


@DTYPES
@WIDTHS
@SCHEDULES
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_equals_reference(table, schedule, width, dtype, target):
    case = paged_case(table, kv_heads=1, head_dim=width, dtype=dtype, device=target.device)
    q = torch.randn(len(table), 3, 2, width, device=target.device).to(dtype)
    check(q, case, target, schedule)
