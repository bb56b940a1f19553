# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from aapt_fast.ops import paged_attention, reference
from aapt_fast.testing.cases import ABSURD_PAGE, DEVICES, LENGTHS, PagedCase, every_second, paged_case, strided
from aapt_fast.testing.compare import assert_near, assert_within_twice_torch

HEAD_DIM = 16
TABLES = {
    "one slot": [[1]],
    "frames of 36": [[36, 36, 36, 0, 0]],
    "frames of 65": [[64, 1, 64, 1, 0]],
    "unused entries between used ones": [[0, 36, 0, 64, 7, 0]],
    "rows of one pattern": [[36, 36, 0], [36, 36, 0]],
    "rows of different patterns": [[36, 0, 5], [64, 64, 64], [0, 0, 0], [5, 36, 0]],
    "nothing valid": [[0, 0]],
    "no entries": [[]],
}


def queries(rows: int, tokens: int = 5, heads: int = 4, **kwargs) -> torch.Tensor:
    return torch.randn(rows, tokens, heads, HEAD_DIM, **kwargs)


def attend(q: torch.Tensor, case: PagedCase, scale: float | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    return paged_attention(q, case.k_pages, case.v_pages, case.page_ids, case.page_valid, scale)


def explicit(q: torch.Tensor, case: PagedCase, row: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention of one row in float64 over the keys the pages were filled with: out [N, H, D], lse [H, N]."""
    group = q.shape[2] // case.k_pages.shape[2]
    keys, values = (x[row].double().repeat_interleave(group, 1) for x in (case.keys, case.values))
    scores = torch.einsum("nhd,shd->hns", q[row].double(), keys) * scale
    return torch.einsum("hns,shd->nhd", scores.softmax(-1), values), scores.logsumexp(-1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_op_and_reference_equal_explicit_softmax(table, device):
    case = paged_case(table, head_dim=HEAD_DIM, device=device)
    q = queries(len(table), device=device)
    listed = (q, case.k_pages, case.v_pages, case.page_ids, case.page_valid)
    for out, lse in (attend(q, case), reference.paged_attention(*listed, HEAD_DIM**-0.5)):
        assert lse.dtype == torch.float32
        for row, counts in enumerate(table):
            if sum(counts):
                expected_out, expected_lse = explicit(q, case, row, HEAD_DIM**-0.5)
                assert_near(out[row], expected_out, 1e-5, "out")
                assert_near(lse[row], expected_lse, 1e-5, "lse")
            else:
                assert torch.equal(out[row], torch.zeros_like(out[row]))
                assert torch.equal(lse[row], torch.full_like(lse[row], -torch.inf))


@pytest.mark.parametrize("device", DEVICES)
def test_page_bias_is_added_to_the_scores_of_its_page(device):
    case = paged_case([[36, 0, 5, 36], [64, 36, 0, 1]], head_dim=HEAD_DIM, device=device)
    q, bias = queries(2, device=device), torch.tensor([[1.0, torch.nan, -2.0, 0.5], [0.0, 3.0, torch.nan, -1.0]])
    listed = (q, case.k_pages, case.v_pages, case.page_ids, case.page_valid)
    for out, lse in (
        paged_attention(*listed, page_bias=bias.to(device)),
        reference.paged_attention(*listed, HEAD_DIM**-0.5, bias.to(device)),
    ):
        for row in range(2):
            keys, values = (x[row].repeat_interleave(2, 1) for x in (case.keys, case.values))
            scores = torch.einsum("nhd,shd->hns", q[row], keys) * HEAD_DIM**-0.5
            scores = scores + bias[row].to(device).repeat_interleave(case.page_valid[row])
            assert_near(out[row], torch.einsum("hns,shd->nhd", scores.softmax(-1), values), 1e-5, "out")
            assert_near(lse[row], scores.logsumexp(-1), 1e-5, "lse")


@pytest.mark.parametrize("heads", [1, 2, 6], ids=lambda heads: f"{heads} heads")
@pytest.mark.parametrize("tokens", [0, *LENGTHS], ids=lambda tokens: f"{tokens} tokens")
def test_lengths_and_grouped_heads(tokens, heads):
    case = paged_case([[64, 3], [9, 0]], kv_heads=1 if heads == 1 else 2, head_dim=HEAD_DIM)
    q = queries(2, tokens, heads)
    out, lse = attend(q, case, scale=0.3)
    assert out.shape == q.shape and lse.shape == (2, heads, tokens)
    for row in range(2):
        expected_out, expected_lse = explicit(q, case, row, scale=0.3)
        assert_near(out[row], expected_out, 1e-5)
        assert_near(lse[row], expected_lse, 1e-5)


@pytest.mark.parametrize("view", [strided, every_second])
def test_strided_inputs(view):
    case = paged_case([[36, 36, 0], [1, 64, 2]], head_dim=HEAD_DIM)
    q = queries(2)
    expected = attend(q, case)
    case.k_pages, case.v_pages = view(case.k_pages), view(case.v_pages)
    case.page_ids, case.page_valid = strided(case.page_ids), strided(case.page_valid)
    for actual, wanted in zip(attend(view(q), case), expected, strict=True):
        assert torch.equal(actual, wanted)
        assert actual.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_within_twice_torch(dtype):
    case = paged_case([[36, 36, 36, 0]], kv_heads=4, head_dim=HEAD_DIM, dtype=dtype)
    q = queries(1).to(dtype)
    out, lse = attend(q, case)
    keys, values = (x[0][None].transpose(1, 2) for x in (case.keys, case.values))
    plain = scaled_dot_product_attention(q.transpose(1, 2), keys, values).transpose(1, 2)
    oracle, oracle_lse = explicit(q, case, 0, HEAD_DIM**-0.5)
    assert out.dtype == dtype
    assert_within_twice_torch(out[0], oracle, plain[0])
    assert_near(lse[0], oracle_lse, 1e-4)


def test_moving_pages_in_the_pool_changes_no_bit():
    case = paged_case([[36, 36, 5, 0], [64, 36, 0, 0]], head_dim=HEAD_DIM)
    q = queries(2)
    moved = case.permuted(torch.randperm(len(case.k_pages)))
    assert not torch.equal(moved.page_ids, case.page_ids)
    for actual, expected in zip(attend(q, moved), attend(q, case), strict=True):
        assert torch.equal(actual, expected)


def test_order_of_the_table_does_not_matter():
    case = paged_case([[36, 0, 5, 64, 36]], head_dim=HEAD_DIM)
    q = queries(1)
    expected = attend(q, case)
    order = torch.tensor([4, 2, 1, 0, 3])
    case.page_ids, case.page_valid = case.page_ids[:, order], case.page_valid[:, order]
    for actual, wanted in zip(attend(q, case), expected, strict=True):
        assert_near(actual, wanted, 1e-6)


def test_lse_merges_two_halves_of_a_table():
    case = paged_case([[36, 36, 5, 64]], head_dim=HEAD_DIM)
    q = queries(1)
    whole, _ = attend(q, case)
    parts = []
    for half in (slice(0, 2), slice(2, 4)):
        parts.append(paged_attention(q, case.k_pages, case.v_pages, case.page_ids[:, half], case.page_valid[:, half]))
    shares = torch.stack([lse for _, lse in parts]).softmax(0).transpose(2, 3)[..., None]  # [2, B, N, H, 1]
    assert_near((torch.stack([out for out, _ in parts]) * shares).sum(0), whole, 1e-6)


def test_opcheck():
    case = paged_case([[36, 36, 0], [1, 64, 2]], head_dim=HEAD_DIM)
    pages = (
        case.k_pages.nan_to_num(),
        strided(case.v_pages.nan_to_num()),
    )  # opcheck compares inputs, NaN differs from NaN
    arguments = (strided(queries(2)), *pages, case.page_ids, case.page_valid, 0.25, None, None)
    torch.library.opcheck(torch.ops.aapt.paged_attention.default, arguments)


def test_compile():
    case = paged_case([[36, 36, 0]], head_dim=HEAD_DIM)
    q = queries(1)
    compiled = torch.compile(lambda q: attend(q + 1, case), fullgraph=True, backend="aot_eager")
    for actual, expected in zip(compiled(q), attend(q + 1, case), strict=True):
        assert_near(actual, expected, 1e-6)


def test_gradients_are_refused():
    case, q = paged_case([[36]], head_dim=HEAD_DIM), queries(1, requires_grad=True)
    with pytest.raises(RuntimeError, match="paged_attention has no backward"):
        attend(q, case)
    with torch.no_grad():
        attend(q, case)


BAD_INPUTS = {
    "q dimensions": ({"q": queries(2)[0]}, r"q: expected shape \[B, Nq, H, 16\], got \[5, 4, 16\]"),
    "q width": ({"q": torch.randn(2, 5, 4, 8)}, r"q: expected shape \[B, Nq, H, 16\], got \[2, 5, 4, 8\]"),
    "q heads": (
        {"q": queries(2, heads=3)},
        "q: expected a number of heads that is a multiple of the pages' 2, got 3",
    ),
    "q dtype": ({"q": queries(2).bfloat16()}, r"q: expected torch\.float32, got torch\.bfloat16"),
    "q device": ({"q": queries(2, device="meta")}, "q: expected a tensor on cpu, got one on meta"),
    "page size": ({"k_pages": torch.randn(6, 32, 2, 16)}, r"k_pages: expected shape \[P, 64, Hkv, D\], got \[6, 32"),
    "page dtype": (
        {"k_pages": torch.zeros(6, 64, 2, 16).double()},
        r"k_pages: expected torch\.float32 or torch\.bfloat16 or torch\.float16, got torch\.float64",
    ),
    "values differ from keys": (
        {"v_pages": torch.randn(5, 64, 2, 16)},
        r"v_pages: expected shape \[\d, 64, 2, 16\], got \[5, 64, 2, 16\]",
    ),
    "values dtype": (
        {"v_pages": torch.zeros(6, 64, 2, 16).half()},
        r"v_pages: expected torch\.float32, got torch\.fl",
    ),
    "table rows": ({"page_ids": torch.zeros(3, 2).int()}, r"page_ids: expected shape \[2, M\], got \[3, 2\]"),
    "table dtype": ({"page_ids": torch.zeros(2, 2).long()}, r"page_ids: expected torch\.int32, got torch\.int64"),
    "valid shape": ({"page_valid": torch.zeros(2, 3).int()}, r"page_valid: expected shape \[2, 2\], got \[2, 3\]"),
    "valid dtype": ({"page_valid": torch.zeros(2, 2)}, r"page_valid: expected torch\.int32, got torch\.float32"),
    "bias shape": ({"page_bias": torch.zeros(2, 3)}, r"page_bias: expected shape \[2, 2\], got \[2, 3\]"),
    "bias dtype": ({"page_bias": torch.zeros(2, 2).half()}, r"page_bias: expected torch\.float32, got torch\.float16"),
    "page outside the pool": (
        {"page_ids": torch.tensor([[0, 1], [ABSURD_PAGE, 2]]).int()},
        rf"page_ids: expected ids in 0\.\.5 \(the pool\), got {ABSURD_PAGE} in row 1",
    ),
    "negative page": ({"page_ids": torch.tensor([[-1, 1], [0, 2]]).int()}, r"page_ids: .*, got -1 in row 0"),
    "too many valid": (
        {"page_valid": torch.tensor([[64, 65], [1, 1]]).int()},
        r"page_valid: expected counts in 0\.\.64, got 65 in row 0",
    ),
    "negative valid": ({"page_valid": torch.tensor([[1, 1], [1, -1]]).int()}, r"page_valid: .*, got -1 in row 1"),
}


@pytest.mark.parametrize(("change", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_bad_inputs(change, message):
    case = paged_case([[36, 36], [3, 64]], head_dim=HEAD_DIM)
    good = {
        "q": queries(2),
        "k_pages": case.k_pages,
        "v_pages": case.v_pages,
        "page_ids": case.page_ids,
        "page_valid": case.page_valid,
    }
    paged_attention(**good)
    with pytest.raises(ValueError, match=message):
        paged_attention(**{**good, **change})
