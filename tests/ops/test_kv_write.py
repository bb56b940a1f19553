# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from aapt_fast.ops import FrameRope, kv_write, normalise_and_rotate, reference
from aapt_fast.testing.cases import ABSURD_PAGE, DEVICES, LENGTHS, every_second, strided
from aapt_fast.testing.compare import assert_near, assert_within_twice_torch

HEADS, KV_HEADS, HEAD_DIM, PAGES = 4, 2, 16, 7
NORMS = {"no norm": (None, None), "per head": (HEAD_DIM, HEAD_DIM), "across heads": (64, 32)}


def tokens_of(batch: int, tokens: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """Random q [B, N, H, D], k and v [B, N, Hkv, D]."""
    return tuple(torch.randn(batch, tokens, heads, HEAD_DIM).to(dtype) for heads in (HEADS, KV_HEADS, KV_HEADS))


def rotation(tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin [N, D / 2] of a frame one token high."""
    return FrameRope((1, tokens), HEAD_DIM)(3)


def rotations(batch: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin [B, N, D / 2] of rows whose frames have other numbers."""
    tables = (FrameRope((1, tokens), HEAD_DIM)(3 + 2 * row) for row in range(batch))
    cos, sin = (torch.stack(table) for table in zip(*tables, strict=True))
    return cos, sin


def weights(norm: str) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    q_size, k_size = NORMS[norm]
    return (None, None) if q_size is None else (torch.rand(q_size) + 0.5, torch.rand(k_size) + 0.5)


def pool(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Two pools [P, 64, Hkv, D] of NaN: whatever is not written stays NaN."""
    empty = torch.full((PAGES, 64, KV_HEADS, HEAD_DIM), torch.nan, dtype=dtype)
    return empty, empty.clone()


def page_table(batch: int, tokens: int) -> torch.Tensor:
    entries = -(-tokens // 64)
    return torch.randperm(PAGES, dtype=torch.int32)[: batch * entries].view(batch, entries)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("rotated", ["rotated", "rows with rotations of their own", "not rotated"])
@pytest.mark.parametrize("tokens", LENGTHS)
def test_equals_reference(tokens, rotated, norm, device):
    tables = {"rotated": rotation(tokens), "rows with rotations of their own": rotations(2, tokens)}
    cos, sin = tables.get(rotated, (None, None))
    arguments = (*tokens_of(2, tokens), *weights(norm), cos, sin)
    arguments = tuple(x if x is None else x.to(device) for x in arguments)
    pages, expected_pages = ([x.to(device) for x in pool()] for _ in range(2))
    table = page_table(2, tokens).to(device)
    out = kv_write(*arguments, *pages, table)
    expected = reference.kv_write(*arguments, *expected_pages, table, 1e-6)
    assert_near(out, expected, 1e-6, "q")
    for actual, wanted in zip(pages, expected_pages, strict=True):
        assert_near(actual, wanted, 1e-6, "pages")  # the pattern of NaN included: no other slot was touched


def test_values_are_written_bit_by_bit():
    q, k, v = tokens_of(1, 65)
    pages = pool()
    kv_write(q, k, v, None, None, None, None, *pages, torch.tensor([[5, 2]], dtype=torch.int32))
    assert torch.equal(pages[1][5], v[0, :64]) and torch.equal(pages[1][2, 0], v[0, 64])
    assert torch.equal(pages[0][5], k[0, :64]) and torch.equal(pages[0][2, 0], k[0, 64])


@pytest.mark.parametrize("norm", ["no norm", "across heads"])
def test_rows_with_rotations_of_their_own_equal_rows_alone(norm):
    (q, k, v), (cos, sin), norms = tokens_of(3, 65), rotations(3, 65), weights(norm)
    table = page_table(3, 65)
    pages, alone = pool(), pool()
    out = kv_write(q, k, v, *norms, cos, sin, *pages, table)
    for row in range(3):
        each = slice(row, row + 1)
        one = kv_write(q[each], k[each], v[each], *norms, cos[row], sin[row], *alone, table[each])
        assert torch.equal(out[each], one)
    assert torch.equal(pages[0].nan_to_num(), alone[0].nan_to_num())


def test_result_never_shares_memory_with_q():
    q, k, v = tokens_of(1, 3)
    out = kv_write(q, k, v, None, None, None, None, *pool(), page_table(1, 3))
    assert torch.equal(out, q) and out.data_ptr() != q.data_ptr()


@pytest.mark.parametrize("norm", ["no norm", "per head"])
@pytest.mark.parametrize("view", [strided, every_second])
def test_strided_inputs(view, norm):
    q, k, v = tokens_of(2, 65)
    tables, table = rotation(65), page_table(2, 65)
    norms = weights(norm)
    expected_pages, pages = pool(), [view(x) for x in pool()]
    expected = kv_write(q, k, v, *norms, *tables, *expected_pages, table)
    norm_views = [x if x is None else view(x) for x in norms]
    out = kv_write(view(q), view(k), view(v), *norm_views, *(view(x) for x in tables), *pages, strided(table))
    assert_near(out, expected, 1e-6)
    for actual, wanted in zip(pages, expected_pages, strict=True):
        assert_near(actual, wanted, 1e-6)


def test_queries_may_be_a_slice_of_a_fused_projection():
    q, k, v = torch.randn(2, 5, 3, KV_HEADS, HEAD_DIM).unbind(2)
    cos, sin = rotation(5)
    table = page_table(2, 5)
    out = kv_write(q, k, v, None, None, cos, sin, *pool(), table)
    assert_near(out, reference.kv_write(q, k, v, None, None, cos, sin, *pool(), table, 1e-6), 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_within_twice_torch(dtype):
    q, k, v = tokens_of(1, 36, dtype)
    (cos, sin), (q_weight, k_weight) = rotation(36), weights("per head")
    pages, table = pool(dtype), page_table(1, 36)
    out = kv_write(q, k, v, q_weight, k_weight, cos, sin, *pages, table)
    for actual, x, weight in ((out, q, q_weight), (pages[0][table[0, 0], :36][None], k, k_weight)):
        oracle = reference.normalise_and_rotate(x.double(), weight.double(), cos.double(), sin.double(), 1e-6)
        normed = torch.nn.functional.rms_norm(x, (HEAD_DIM,), weight.to(dtype), 1e-6)
        plain = reference.rotate(normed, cos.to(dtype), sin.to(dtype))
        assert actual.dtype == dtype
        assert_within_twice_torch(actual, oracle, plain)


def test_rotation_turns_pairs_and_keeps_their_length():
    x = torch.tensor([1.0, 0.0, 0.0, 2.0]).view(1, 1, 4)
    angle = torch.tensor([[torch.pi / 2, torch.pi]])
    turned = normalise_and_rotate(x, None, angle.cos(), angle.sin())
    assert_near(turned.flatten(), torch.tensor([0.0, 1.0, 0.0, -2.0]), 1e-6)


def test_norm_has_unit_mean_square_and_spans_what_the_weight_spans():
    x = torch.randn(3, HEADS, HEAD_DIM) * torch.tensor([1.0, 10.0, 100.0, 1000.0])[:, None]
    per_head = normalise_and_rotate(x, torch.ones(HEAD_DIM), None, None)
    across = normalise_and_rotate(x, torch.ones(HEADS * HEAD_DIM), None, None)
    assert_near(per_head.square().mean(-1), torch.ones(3, HEADS), 1e-5)
    assert_near(across.square().mean((-1, -2)), torch.ones(3), 1e-5)
    assert across[:, 0].square().mean() < 1e-3


@pytest.mark.parametrize("size", [4, 8], ids=["per head", "across heads"])
def test_gradients_of_the_pure_part(size):
    x = torch.randn(2, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(size, dtype=torch.float64, requires_grad=True)
    cos, sin = FrameRope((1, 3), 4)(1)
    assert torch.autograd.gradcheck(lambda x, weight: normalise_and_rotate(x, weight, cos, sin), (x, weight))
    actual = torch.autograd.grad(normalise_and_rotate(x, weight, cos, sin).square().sum(), (x, weight))
    expected = torch.autograd.grad(
        reference.normalise_and_rotate(x, weight, cos, sin, 1e-6).square().sum(), (x, weight)
    )
    for gradient, wanted in zip(actual, expected, strict=True):
        assert_near(gradient, wanted, 1e-10)


def test_opcheck():
    pages = [x.zero_() for x in pool()]
    arguments = (*tokens_of(2, 65), *weights("across heads"), *rotation(65), *pages, page_table(2, 65), 1e-6)
    torch.library.opcheck(torch.ops.aapt.kv_write.default, arguments)


def test_compile_keeps_the_mutation():
    q, k, v = tokens_of(1, 5)
    table, expected_pages, pages = page_table(1, 5), pool(), pool()

    def doubled(pages: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return kv_write(2 * q, 2 * k, v, None, None, None, None, *pages, table)

    expected = doubled(expected_pages)
    out = torch.compile(doubled, fullgraph=True, backend="aot_eager")(pages)
    assert_near(out, expected, 1e-6)
    for actual, wanted in zip(pages, expected_pages, strict=True):
        assert_near(actual, wanted, 1e-6)


def test_gradients_are_refused():
    q, k, v = tokens_of(1, 5)
    arguments = (k, v, None, None, None, None, *pool(), page_table(1, 5))
    with pytest.raises(RuntimeError, match="kv_write has no backward"):
        kv_write(q.requires_grad_(), *arguments)


BAD_INPUTS = {
    "q width": ({"q": torch.randn(1, 5, 4, 8)}, r"q: expected shape \[B, Nq, H, 16\], got \[1, 5, 4, 8\]"),
    "q heads": ({"q": torch.randn(1, 5, 3, 16)}, "q: expected a number of heads .*, got 3"),
    "k tokens": ({"k": torch.randn(1, 6, 2, 16)}, r"k: expected shape \[1, 5, 2, 16\], got \[1, 6, 2, 16\]"),
    "k dtype": ({"k": torch.randn(1, 5, 2, 16).half()}, r"k: expected torch\.float32, got torch\.float16"),
    "v heads": ({"v": torch.randn(1, 5, 4, 16)}, r"v: expected shape \[1, 5, 2, 16\], got \[1, 5, 4, 16\]"),
    "v device": ({"v": torch.randn(1, 5, 2, 16, device="meta")}, "v: expected a tensor on cpu, got one on meta"),
    "q_weight": ({"q_weight": torch.ones(32)}, r"q_weight: expected shape \[16\] or \[64\], got \[32\]"),
    "k_weight": ({"k_weight": torch.ones(64)}, r"k_weight: expected shape \[16\] or \[32\], got \[64\]"),
    "weight dtype": (
        {"q_weight": torch.ones(16).int()},
        "q_weight: expected a floating point dtype, got torch.int32",
    ),
    "cos without sin": ({"sin": None}, "sin: expected a tensor, as cos is one, got None"),
    "sin without cos": ({"cos": None}, "cos: expected a tensor, as sin is one, got None"),
    "cos length": ({"cos": torch.ones(4, 8)}, r"cos: expected shape \[5, 8\], got \[4, 8\]"),
    "cos rows": ({"cos": torch.ones(2, 5, 8)}, r"cos: expected shape \[1, 5, 8\], got \[2, 5, 8\]"),
    "sin of all rows": (
        {"cos": torch.ones(1, 5, 8)},
        r"sin: expected shape \[1, 5, 8\], got \[5, 8\]",
    ),
    "sin dtype": ({"sin": torch.ones(5, 8).double()}, r"sin: expected torch\.float32, got torch\.float64"),
    "page size": ({"k_pages": torch.ones(7, 16, 2, 16)}, r"k_pages: expected shape \[P, 64, Hkv, D\], got \[7, 16"),
    "value pages": (
        {"v_pages": torch.ones(7, 64, 2, 8)},
        r"v_pages: expected shape \[7, 64, 2, 16\], got \[7, 64, 2, 8\]",
    ),
    "table length": ({"page_ids": torch.zeros(1, 2).int()}, r"page_ids: expected shape \[1, 1\], got \[1, 2\]"),
    "table dtype": ({"page_ids": torch.zeros(1, 1).long()}, r"page_ids: expected torch\.int32, got torch\.int64"),
    "page outside the pool": (
        {"page_ids": torch.tensor([[ABSURD_PAGE]]).int()},
        rf"page_ids: expected ids in 0\.\.6 \(the pool\), got {ABSURD_PAGE} in row 0",
    ),
}


@pytest.mark.parametrize(("change", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_bad_inputs(change, message):
    q, k, v = tokens_of(1, 5)
    (q_weight, k_weight), (cos, sin), (k_pages, v_pages) = weights("per head"), rotation(5), pool()
    good = {"q": q, "k": k, "v": v, "q_weight": q_weight, "k_weight": k_weight, "cos": cos, "sin": sin}
    good |= {"k_pages": k_pages, "v_pages": v_pages, "page_ids": page_table(1, 5)}
    kv_write(**good)
    with pytest.raises(ValueError, match=message):
        kv_write(**{**good, **change})


def test_a_page_listed_twice_is_refused_and_nothing_is_written():
    q, k, v = tokens_of(2, 5)
    pages = pool()
    with pytest.raises(ValueError, match="page_ids: expected every page once, got 3 again in row 1"):
        kv_write(q, k, v, None, None, None, None, *pages, torch.tensor([[3], [3]]).int())
    assert pages[0].isnan().all() and pages[1].isnan().all()
