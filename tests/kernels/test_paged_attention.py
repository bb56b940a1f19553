# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import functools
import importlib

import pytest
import torch

from aapt_fast.ops import PAGE_SLOTS, paged_attention, reference
from aapt_fast.ops.split_schedule import Schedule
from aapt_fast.testing.cases import ABSURD_PAGE, PagedCase, padded_rows, paged_case
from aapt_fast.testing.compare import assert_near, assert_within_twice_torch

DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
WIDTHS = pytest.mark.parametrize("width", [64, 128], ids=lambda width: f"D {width}")
SCHEDULES = pytest.mark.parametrize("schedule", range(4), ids=lambda seed: f"schedule {seed}")
PORTABLE, HOPPER, SPLIT = "paged_attention/portable", "paged_attention/sm90", "paged_attention/sm90_split"
TABLES = {
    "one slot": [[1]],
    "63, 64 and 65 slots": [[63, 0, 0], [64, 0, 0], [64, 1, 0]],
    "frames of 65": [[64, 1, 64, 1, 0]],
    "unused entries between used ones": [[0, 36, 0, 64, 7, 0]],
    "rows of different patterns": [[36, 0, 5], [64, 64, 64], [0, 0, 0], [5, 36, 0]],
    "many pages": [[64, 64, 9, 64, 0, 64, 64, 1, 64, 64, 30, 64, 64]],
    "nothing valid": [[0, 0]],
    "no entries": [[]],
}


def half_of_the_heads_in_three_parts(q: torch.Tensor, entries: int) -> Schedule:
    """The tables here are too short to be split by themselves."""
    return Schedule.even(q.shape[0] * q.shape[2] // 2, 3)


@pytest.fixture(params=[PORTABLE, HOPPER, SPLIT])
def kernel(request: pytest.FixtureRequest, target, monkeypatch) -> str:
    """Every test runs with each kernel of the op."""
    op = importlib.import_module("aapt_fast.ops.paged_attention")
    monkeypatch.setattr(op, "_schedule", half_of_the_heads_in_three_parts)
    reason = None if request.param == PORTABLE else target.why_not_hopper()
    return pytest.skip(reason) if reason else request.param


@pytest.fixture
def attend(kernel, target):
    """`run` with this kernel."""
    return functools.partial(run, kernel=kernel, target=target)


@pytest.fixture
def check(attend):
    """`compare` with this kernel."""
    return functools.partial(compare, attend=attend)


def queries(rows: int, target, tokens: int = 3, heads: int = 2, width: int = 64, dtype=torch.bfloat16) -> torch.Tensor:
    return torch.randn(rows, tokens, heads, width).to(dtype).to(target.device)


def run(q: torch.Tensor, case: PagedCase, schedule: int = 0, scale: float | None = None, bias=None, *, kernel, target):
    with target.kernels(kernel, schedule=schedule):
        return paged_attention(q, case.k_pages, case.v_pages, case.page_ids, case.page_valid, scale, bias)


def compare(
    q: torch.Tensor, case: PagedCase, schedule: int = 0, scale: float | None = None, bias=None, *, attend
) -> None:
    """The kernel is within twice torch's own error of the reference in float32, out and lse."""
    out, lse = attend(q, case, schedule, scale, bias)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    arguments = (q.float(), case.k_pages, case.v_pages, case.page_ids, case.page_valid, scale, bias)
    oracle, oracle_lse = reference.paged_attention(*arguments)
    assert out.dtype == q.dtype and out.is_contiguous() and lse.dtype == torch.float32
    assert_within_twice_torch(out, oracle, plain_torch(q, case, scale, bias))
    assert_near(lse, oracle_lse, 1e-5, "lse")


def plain_torch(q: torch.Tensor, case: PagedCase, scale: float, bias: torch.Tensor | None) -> torch.Tensor:
    """The composition in torch, every operation rounded to the dtype of `q`: [B, N, H, D]."""
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
def test_equals_reference(table, schedule, width, dtype, check, target):
    case = paged_case(table, kv_heads=1, head_dim=width, dtype=dtype, device=target.device)
    check(queries(len(table), target, width=width, dtype=dtype), case, schedule)


@WIDTHS
@SCHEDULES
@pytest.mark.parametrize("tokens", [1, 16, 17, 63, 64, 65, 127, 128, 129, 200])
def test_query_lengths(tokens, schedule, width, check, target):
    case = paged_case([[64, 13, 64]], kv_heads=1, head_dim=width, dtype=torch.bfloat16, device=target.device)
    check(queries(1, target, tokens, heads=1, width=width), case, schedule)


ONLY_PORTABLE = pytest.mark.parametrize("kernel", [PORTABLE], indirect=True)


@ONLY_PORTABLE
@DTYPES
@SCHEDULES
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("biased", [False, True], ids=["no bias", "bias"])
def test_heads_of_56(biased, table, schedule, dtype, check, target):
    """The last piece of a row in shared memory is padding; what lies in its place in memory is NaN."""
    case = paged_case(table, kv_heads=2, head_dim=56, dtype=dtype, device=target.device)
    case = dataclasses.replace(case, k_pages=padded_rows(case.k_pages), v_pages=padded_rows(case.v_pages))
    q = queries(len(table), target, tokens=130 if biased else 3, width=56, dtype=dtype)
    bias = torch.randn(case.page_valid.shape, device=target.device) if biased else None
    check(padded_rows(q), case, schedule, bias=bias)


@ONLY_PORTABLE
@SCHEDULES
def test_a_head_of_56_reads_and_writes_nothing_of_its_neighbours(schedule, kernel, target):
    """Heads, tokens and slots lie side by side without a gap; what is beside the first head is NaN, then it is not."""
    case = paged_case([[64, 5]], kv_heads=2, head_dim=56, dtype=torch.bfloat16, device=target.device)
    q = queries(1, target, tokens=70, width=56)
    room = torch.full((q.numel() + 64,), 7.0, dtype=q.dtype, device=target.device)
    out, lse = room[: q.numel()].view(q.shape), torch.empty(1, 2, 70, device=target.device)

    def first_head(q: torch.Tensor, k_pages: torch.Tensor, v_pages: torch.Tensor) -> torch.Tensor:
        target.module.set_schedule(schedule) if target.name == "emulated" else None
        table = (case.page_ids, case.page_valid, None)
        target.call(kernel.replace("/", "_"), q, k_pages, v_pages, *table, out, lse, 0.1)
        assert (room[q.numel() :] == 7).all()
        return out[:, :, 0].clone()

    expected = first_head(q, case.k_pages, case.v_pages)
    poisoned = [x.clone() for x in (q, case.k_pages, case.v_pages)]
    for x in poisoned:
        x[:, :, 1] = torch.nan
    assert expected.isfinite().all() and torch.equal(first_head(*poisoned), expected)
    assert out[:, :, 1].isnan().all()


@pytest.mark.parametrize("valid", [1, 7, 8, 9, 31, 32, 33, 63, 64])
def test_valid_counts(valid, check, target):
    case = paged_case([[valid]], kv_heads=1, head_dim=128, dtype=torch.float16, device=target.device)
    check(queries(1, target, width=128, dtype=torch.float16), case, schedule=1)


@DTYPES
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (3, 3), (6, 3), (4, 1)])
def test_grouped_heads(heads, kv_heads, dtype, check, target):
    case = paged_case([[64, 5], [9, 0]], kv_heads=kv_heads, head_dim=64, dtype=dtype, device=target.device)
    check(queries(2, target, heads=heads, dtype=dtype), case, schedule=2)


@DTYPES
def test_no_tokens_and_no_rows(dtype, attend, target):
    case = paged_case([[64], [3]], head_dim=64, dtype=dtype, device=target.device)
    out, lse = attend(queries(2, target, tokens=0, dtype=dtype), case)
    assert out.shape == (2, 0, 2, 64) and lse.shape == (2, 2, 0)
    empty = dataclasses.replace(case, page_ids=case.page_ids[:0], page_valid=case.page_valid[:0])
    assert attend(queries(0, target, dtype=dtype), empty)[0].shape == (0, 3, 2, 64)


@pytest.mark.parametrize("scale", [1e-3, 0.3, 4.0])
def test_scale(scale, check, target):
    case = paged_case([[64, 64, 20]], head_dim=64, dtype=torch.float16, device=target.device)
    check(queries(1, target, dtype=torch.float16), case, scale=scale)


@DTYPES
@WIDTHS
def test_page_bias(width, dtype, check, attend, target):
    case = paged_case([[64, 0, 13, 64], [5, 64, 64, 0]], kv_heads=1, head_dim=width, dtype=dtype, device=target.device)
    bias = torch.tensor([[0.0, torch.nan, -1.5, 3.0], [2.0, -torch.inf, 0.5, torch.nan]], device=target.device)
    used = torch.where(case.page_valid > 0, bias, 0)
    out, lse = attend(queries(2, target, width=width, dtype=dtype), case, bias=bias)
    assert out.isfinite().all() and lse.isfinite().all()  # the bias of an unused entry is not looked at
    check(queries(2, target, width=width, dtype=dtype), case, schedule=3, bias=used)


def test_a_row_whose_pages_all_have_a_bias_of_minus_infinity_sees_nothing(attend, target):
    case = paged_case([[64, 13]], head_dim=64, dtype=torch.float16, device=target.device)
    bias = torch.full((1, 2), -torch.inf, device=target.device)
    out, lse = attend(queries(1, target, dtype=torch.float16), case, bias=bias)
    assert torch.equal(out, torch.zeros_like(out)) and torch.equal(lse, torch.full_like(lse, -torch.inf))


@WIDTHS
def test_large_and_growing_scores(width, check, target):
    """The running maximum moves with every page; one huge key takes everything."""
    case = paged_case([[64, 64, 64, 30]], kv_heads=1, head_dim=width, dtype=torch.bfloat16, device=target.device)
    q = queries(1, target, tokens=20, width=width)
    for entry, factor in enumerate([0.1, 3.0, 30.0, 0.01]):
        case.k_pages[case.page_ids[0, entry]] *= factor
        start, stop = entry * 64, entry * 64 + int(case.page_valid[0, entry])
        case.keys[0][start:stop] *= factor
    check(q, case, schedule=1)


def test_all_keys_equal_gives_the_mean_of_the_values(attend, target):
    case = paged_case([[64, 64, 9]], kv_heads=1, head_dim=64, dtype=torch.float16, device=target.device)
    case.k_pages[:] = torch.where(case.k_pages.isnan(), case.k_pages, 1.0)
    out, _ = attend(queries(1, target, dtype=torch.float16), case)
    assert_near(out, case.values[0].float().mean(0).expand(out.shape), 2e-3)


@WIDTHS
@SCHEDULES
def test_strided_inputs(schedule, width, attend, target):
    case = paged_case([[36, 64, 0], [1, 64, 2]], head_dim=width, dtype=torch.bfloat16, device=target.device)
    q = queries(2, target, tokens=70, width=width)
    expected = attend(q, case)
    views = dataclasses.replace(
        case,
        k_pages=padded_rows(case.k_pages),
        v_pages=padded_rows(case.v_pages),
        page_ids=padded_rows(case.page_ids.T.contiguous()).T,
        page_valid=padded_rows(case.page_valid),
    )
    for actual, wanted in zip(attend(padded_rows(q), views, schedule), expected, strict=True):
        assert torch.equal(actual, wanted)


def test_a_batch_of_one_may_have_any_stride(attend, target):
    case = paged_case([[64, 5]], head_dim=64, dtype=torch.bfloat16, device=target.device)
    q = queries(1, target)
    moved = q.as_strided(q.shape, (3, *q.stride()[1:]))
    for actual, wanted in zip(attend(moved, case), attend(q, case), strict=True):
        assert torch.equal(actual, wanted)


def test_head_major_pages(attend, target):
    """[P, Hkv, 64, D] in memory, seen as [P, 64, Hkv, D]: any strides do as long as rows are dense."""
    case = paged_case([[64, 30]], head_dim=128, dtype=torch.bfloat16, device=target.device)
    q = queries(1, target, width=128)
    expected = attend(q, case)
    case.k_pages = case.k_pages.transpose(1, 2).contiguous().transpose(1, 2)
    for actual, wanted in zip(attend(q, case), expected, strict=True):
        assert torch.equal(actual, wanted)


def test_every_schedule_and_every_page_order_gives_the_same_bits(attend, target):
    case = paged_case([[64, 36, 5, 64]], head_dim=64, dtype=torch.bfloat16, device=target.device)
    q = queries(1, target, tokens=40)
    expected = attend(q, case)
    moved = case.permuted(torch.randperm(len(case.k_pages)).to(target.device))
    for schedule in range(1, 6):
        for actual, wanted in zip(attend(q, moved, schedule), expected, strict=True):
            assert torch.equal(actual, wanted)


def test_offsets_pass_two_to_the_31(attend, target):
    """Page 2 of a pool whose pages lie 2^30 + 64 elements apart; the memory between them is never touched."""
    apart, width = 2**30 + 64, 64
    memory = torch.empty(2 * apart + PAGE_SLOTS * width, dtype=torch.bfloat16, device=target.device)
    pool = memory.as_strided((3, PAGE_SLOTS, 1, width), (apart, width, width, 1))
    near = paged_case([[64, 20]], kv_heads=1, head_dim=width, spare_pages=0, dtype=torch.bfloat16, device=target.device)
    q = queries(1, target)
    expected = attend(q, near)
    pool[2], pool[0] = near.k_pages[near.page_ids[0, 0]], near.k_pages[near.page_ids[0, 1]]
    table = torch.tensor([[2, 0]], dtype=torch.int32, device=target.device)
    values = near.v_pages[near.page_ids[0].long()][[1, 0, 0]]  # pages 0 and 2 as in the pool of keys
    values[2] = near.v_pages[near.page_ids[0, 0]]
    far = dataclasses.replace(near, k_pages=pool, v_pages=values, page_ids=table)
    for actual, wanted in zip(attend(q, far), expected, strict=True):
        assert torch.equal(actual, wanted)
    pool[2], pool[0] = near.v_pages[near.page_ids[0, 0]], near.v_pages[near.page_ids[0, 1]]
    keys = near.k_pages[near.page_ids[0].long()][[1, 0, 0]]
    far = dataclasses.replace(far, k_pages=keys, v_pages=pool)
    for actual, wanted in zip(attend(q, far), expected, strict=True):
        assert torch.equal(actual, wanted)


def bad_entry(kernel: str, target, ids: list[int], valid: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """out and lse of two rows, the second one with this page table, called below the checks of the op.

    The pool is the first six pages of a larger one without any NaN: what lies outside would give a finite result.
    """
    k_pages, v_pages = torch.randn(2, 8, PAGE_SLOTS, 2, 64, device=target.device).bfloat16()[:, :6]
    page_ids = torch.tensor([[0, 1], ids], dtype=torch.int32, device=target.device)
    page_valid = torch.tensor([[64, 5], valid], dtype=torch.int32, device=target.device)
    q = queries(2, target)
    out, lse = torch.full_like(q, 7), torch.full((2, 2, 3), 7.0, device=target.device)
    parts = [out.new_empty(6, 3, 1, 64), lse.new_empty(6, 3), 1, [420, 420]] if kernel == SPLIT else []
    target.call(kernel.replace("/", "_"), q, k_pages, v_pages, page_ids, page_valid, None, out, lse, 0.1, *parts)
    assert out[0].isfinite().all() and lse[0].isfinite().all()
    return out[1], lse[1]


@pytest.mark.parametrize(
    ("ids", "valid"),
    [([0, ABSURD_PAGE], [64, 5]), ([0, 6], [64, 5]), ([-1, 0], [64, 5]), ([0, 1], [65, 5]), ([0, 1], [64, -1])],
    ids=["absurd page", "page past the end", "negative page", "65 slots", "-1 slots"],
)
def test_a_broken_page_table_gives_nan_and_reads_nothing_outside(ids, valid, kernel, target):
    out, lse = bad_entry(kernel, target, ids, valid)
    assert out.isnan().all() and lse.isnan().all()


def test_values_of_a_page_table_on_the_cpu_are_checked_before_the_launch(attend, kernel, target):
    if target.device.type != "cpu":
        pytest.skip("values on a GPU are not read back; the kernel answers with NaN")
    case = paged_case([[64, 5]], head_dim=64, dtype=torch.bfloat16)
    case.page_ids[0, 1] = ABSURD_PAGE
    with pytest.raises(ValueError, match=rf"page_ids: expected ids in 0\.\.3 \(the pool\), got {ABSURD_PAGE} in row 0"):
        attend(queries(1, target), case)


@WIDTHS
@SCHEDULES
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("biased", [False, True], ids=["no bias", "bias"])
def test_the_probe_without_overlap_equals_the_reference(biased, table, schedule, width, hopper):
    """The kernel to bisect with: where a GPU passes it and not sm90, the order of the products is wrong."""

    def attend(q, case, schedule, scale, bias):
        out, lse = torch.empty_like(q), torch.empty(len(q), 1, q.shape[1], device=q.device)
        inputs = [q, case.k_pages, case.v_pages, case.page_ids, case.page_valid, *([] if bias is None else [bias])]
        hopper.probe("paged_attention", inputs, [out, lse], schedule=schedule)
        return out, lse

    case = paged_case(table, kv_heads=1, head_dim=width, dtype=torch.bfloat16, device=hopper.device)
    bias = torch.randn(case.page_valid.shape, device=hopper.device) if biased else None
    compare(queries(len(table), hopper, tokens=130, heads=1, width=width), case, schedule, bias=bias, attend=attend)


def test_queries_of_one_row_for_all_are_left_to_the_portable_kernel(hopper, target):
    """The copy engine takes no stride of 0."""
    case = paged_case([[64, 5], [9, 0]], head_dim=64, dtype=torch.bfloat16, device=target.device)
    q = queries(1, target).expand(2, -1, -1, -1)
    with pytest.raises(target.module.Unsupported, match="q, stride of dimension 0: expected a positive multiple of 16"):
        run(q, case, kernel=HOPPER, target=target)
    with target.kernels("all"):
        actual = paged_attention(q, case.k_pages, case.v_pages, case.page_ids, case.page_valid)
    for one, other in zip(actual, run(q, case, kernel=PORTABLE, target=target), strict=True):
        assert torch.equal(one, other)


ONLY_SPLIT = pytest.mark.parametrize("kernel", [SPLIT], indirect=True)


@ONLY_SPLIT
@pytest.mark.parametrize("whole", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("shares", [(840,), (420, 420), (700, 140), (140, 420, 280), (105,) * 8], ids=str)
def test_any_split_of_the_keys(whole, shares, check, target, monkeypatch):
    """More parts than entries, too; a row without any key; the second row's last head is the fourth one."""
    op = importlib.import_module("aapt_fast.ops.paged_attention")
    monkeypatch.setattr(op, "_schedule", lambda q, entries: Schedule(whole, shares))
    table = [[64, 36, 64, 5, 0, 64], [0, 0, 0, 0, 0, 0]]
    case = paged_case(table, kv_heads=1, head_dim=64, dtype=torch.bfloat16, device=target.device)
    check(queries(2, target, tokens=130), case, len(shares))


@ONLY_SPLIT
@pytest.mark.parametrize(
    ("shape", "whole", "shares", "message"),
    [
        ((6, 3, 1, 64), 5, [420, 420], "whole: expected 0 to 4 heads, got 5"),
        ((6, 3, 1, 64), 1, [], "shares: expected at most 8 positive numbers that add up to 840, got 0 that"),
        ((6, 3, 1, 64), 1, [420, 421], "shares: expected .*, got 2 that add up to 841"),
        ((6, 3, 1, 64), 1, [841, -1], "shares: expected .*, got 2 that add up to 840"),
        ((6, 3, 1, 64), 1, [93] * 8 + [96], "shares: expected .*, got 9 that add up to 840"),
        ((5, 3, 1, 64), 1, [420, 420], r"part_out: expected .*6, 3, 1, 64.*, got .*5, 3, 1, 64"),
    ],
)
def test_a_split_that_means_nothing_is_refused(shape, whole, shares, message, kernel, target):
    case = paged_case([[64], [5]], head_dim=64, dtype=torch.bfloat16, device=target.device)
    q = queries(2, target)
    out, lse = torch.empty_like(q), torch.empty(2, 2, 3, device=target.device)
    room = [q.new_empty(shape), torch.empty(shape[:2], device=target.device)]
    with pytest.raises(ValueError, match=message):
        table = (case.page_ids, case.page_valid, None)
        split = (*room, whole, shares)
        target.call(kernel.replace("/", "_"), q, case.k_pages, case.v_pages, *table, out, lse, 0.1, *split)


def misaligned(x: torch.Tensor) -> torch.Tensor:
    return torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape)


UNSUPPORTED = {
    "float32": (torch.float32, 64, None, "k_pages: expected bfloat16 or float16 for this kernel, got float32"),
    "width": (torch.float16, 80, None, "q: expected a head width of (56, )?64 or 128 for this kernel, got 80"),
    "scale": (torch.float16, 64, {"scale": -0.5}, "scale: expected a positive number for this kernel, got -0.5"),
    "q": (torch.float16, 64, {"q": misaligned}, "q: expected rows of adjacent elements that start at multiples of 16"),
    "k": (torch.float16, 64, {"k_pages": misaligned}, "k_pages: expected rows of adjacent elements .* at address 2"),
    "v": (
        torch.float16,
        64,
        {"v_pages": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3)},
        "v_pages: expected rows of adjacent elements that start at multiples of 16 bytes, got strides .*, 2]",
    ),
}


@pytest.mark.parametrize(("dtype", "width", "change", "message"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_what_the_kernel_does_not_do_is_refused_in_words(dtype, width, change, message, kernel, target):
    case = paged_case([[64, 5]], head_dim=width, dtype=dtype, device=target.device)
    arguments = {"q": queries(1, target, width=width, dtype=dtype), "k_pages": case.k_pages, "v_pages": case.v_pages}
    arguments |= {"page_ids": case.page_ids, "page_valid": case.page_valid}
    for name, value in (change or {}).items():
        arguments[name] = value(arguments[name]) if callable(value) else value
    with target.kernels(kernel), pytest.raises(ValueError, match=message):
        paged_attention(**arguments)


def test_compile(attend, kernel, target):
    case = paged_case([[36, 64, 0]], head_dim=64, dtype=torch.bfloat16, device=target.device)
    q = queries(1, target)
    expected = attend(q * 2, case)
    with target.kernels(kernel):
        arguments = (case.k_pages, case.v_pages, case.page_ids, case.page_valid)
        compiled = torch.compile(lambda q: paged_attention(q * 2, *arguments), fullgraph=True, backend="aot_eager")
        for actual, wanted in zip(compiled(q), expected, strict=True):
            assert torch.equal(actual, wanted)
