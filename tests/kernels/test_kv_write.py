# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from aapt_fast.ops import FrameRope, kv_write, reference
from aapt_fast.ops.kernels import view
from aapt_fast.testing.cases import ABSURD_PAGE, LENGTHS, every_second, padded_rows, strided
from aapt_fast.testing.compare import assert_near, assert_within_twice_torch

DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
WIDTHS = pytest.mark.parametrize("width", [56, 64, 128], ids=lambda width: f"D {width}")
SCHEDULES = pytest.mark.parametrize("schedule", range(4), ids=lambda seed: f"schedule {seed}")
KERNEL = "kv_write/portable"
EPS = 1e-6
SPARE_PAGES = 2
NORMS = {
    "no norm": (None, None),
    "per head": ("per head", "per head"),
    "across heads": ("across heads", "across heads"),
    "queries only, across heads": ("across heads", None),
    "keys across heads": ("per head", "across heads"),
}


@dataclass
class Case:
    """The arguments of kv_write; the pages are NaN, so that what is not written stays NaN."""

    q: torch.Tensor  # [B, N, H, D]
    k: torch.Tensor  # [B, N, Hkv, D]
    v: torch.Tensor  # [B, N, Hkv, D]
    q_weight: torch.Tensor | None  # [D] or [H * D]
    k_weight: torch.Tensor | None  # [D] or [Hkv * D]
    cos: torch.Tensor | None  # [N, D / 2] or [B, N, D / 2]
    sin: torch.Tensor | None  # likewise
    k_pages: torch.Tensor  # [P, 64, Hkv, D]
    v_pages: torch.Tensor  # [P, 64, Hkv, D]
    page_ids: torch.Tensor  # int32 [B, ceil(N / 64)]

    def arguments(self) -> tuple[torch.Tensor | None, ...]:
        return tuple(vars(self).values())

    def rows_of_angles(self) -> Case:
        """The same with angles [B, N, D / 2], as the compiled function takes them."""
        if self.cos is None or self.cos.ndim == 3:
            return self
        batch = len(self.q)
        return replace(self, cos=self.cos.expand(batch, -1, -1), sin=self.sin.expand(batch, -1, -1))

    def written(self, pages: torch.Tensor) -> torch.Tensor:
        """Contents of the slots of the tokens: [B, N, Hkv, D]."""
        return pages[self.page_ids.long()].flatten(1, 2)[:, : self.q.shape[1]]

    def fresh(self) -> Case:
        """The same with pages of NaN in new memory."""
        pages = torch.full_like(self.k_pages, torch.nan)
        return replace(self, k_pages=pages, v_pages=pages.clone())


def make_case(
    target,
    dtype: torch.dtype = torch.bfloat16,
    *,
    batch: int = 2,
    tokens: int = 5,
    heads: tuple[int, int] = (4, 2),
    width: int = 64,
    norm: str = "per head",
    weight_dtype: torch.dtype = torch.float32,
    rotated: bool = True,
    of_rows: bool = False,
) -> Case:
    """A random case; `heads` are those of q and those of k and v. `of_rows`: every row has angles of its own."""
    q, k, v = (torch.randn(batch, tokens, count, width) * 3 for count in (heads[0], heads[1], heads[1]))

    def weight(kind: str | None, count: int) -> torch.Tensor | None:
        if kind is None:
            return None
        return (torch.rand(width * (count if kind == "across heads" else 1)) + 0.5).to(target.device, weight_dtype)

    weights = [weight(kind, count) for kind, count in zip(NORMS[norm], heads, strict=True)]
    angles = FrameRope((1, tokens), width)(7) if rotated else (None, None)
    if of_rows:
        tables = (FrameRope((1, tokens), width)(7 + 3 * row) for row in range(batch))
        angles = tuple(torch.stack(table) for table in zip(*tables, strict=True))
    entries = -(-tokens // 64)
    ids = torch.randperm(batch * entries + SPARE_PAGES)[: batch * entries].view(batch, entries).int()
    pages = torch.full((batch * entries + SPARE_PAGES, 64, heads[1], width), torch.nan, dtype=dtype)
    tensors = [x if x is None else x.to(target.device) for x in (*angles, pages, pages.clone(), ids)]
    return Case(*(x.to(target.device, dtype) for x in (q, k, v)), *weights, *tensors)


def plain_torch(x: torch.Tensor, weight: torch.Tensor | None, case: Case) -> torch.Tensor:
    """The composition in torch, every operation rounded to the dtype of x [B, N, heads, D]."""
    if weight is not None:
        groups = x if weight.shape[0] == x.shape[-1] else x.flatten(2)
        x = torch.nn.functional.rms_norm(groups, weight.shape, weight.to(x.dtype), EPS).view(x.shape)
    return x if case.cos is None else reference.rotate(x, case.cos.to(x.dtype), case.sin.to(x.dtype))


def assert_right(out: torch.Tensor, case: Case) -> None:
    """Queries and keys are within twice torch's error, values are the same bits, and no other slot was touched."""
    assert out.dtype == case.q.dtype and out.is_contiguous()
    for actual, x, weight in ((out, case.q, case.q_weight), (case.written(case.k_pages), case.k, case.k_weight)):
        wide_weight = None if weight is None else weight.float()
        oracle = reference.normalise_and_rotate(x.float(), wide_weight, case.cos, case.sin, EPS)
        assert_within_twice_torch(actual, oracle, plain_torch(x, weight, case))
    assert torch.equal(case.written(case.v_pages).view(torch.int16), case.v.view(torch.int16))
    for pages in (case.k_pages, case.v_pages):
        assert (~pages.isnan()).sum() == case.v.numel()


def check(case: Case, target, schedule: int = 0) -> torch.Tensor:
    """Run the kernel on the case, whose pages it fills, and compare; returns the queries."""
    with target.kernels(KERNEL, schedule=schedule):
        out = kv_write(*case.arguments(), EPS)
    assert_right(out, case)
    return out


# ---- the maths ----


@DTYPES
@WIDTHS
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("rotated", [True, False], ids=["rotated", "not rotated"])
@pytest.mark.parametrize("tokens", LENGTHS)
@pytest.mark.usefixtures("poisoned_memory")
def test_equals_reference(tokens, rotated, norm, width, dtype, target):
    check(make_case(target, dtype, tokens=tokens, width=width, norm=norm, rotated=rotated), target, schedule=tokens % 4)


@DTYPES
@WIDTHS
@pytest.mark.parametrize("norm", ["no norm", "per head"])
def test_rows_with_angles_of_their_own(norm, width, dtype, target):
    check(make_case(target, dtype, batch=3, tokens=65, width=width, norm=norm, of_rows=True), target)


@DTYPES
@SCHEDULES
@pytest.mark.parametrize("norm", ["across heads", "keys across heads"])
def test_every_schedule(norm, schedule, dtype, target):
    check(make_case(target, dtype, heads=(12, 4), width=128, norm=norm), target, schedule)


# Vectors of 8 elements: fewer than a warp, not a multiple of a warp, and 1, 2, 4 and 8 of them per thread.
HEADS = {
    (1, 1): 128,
    (5, 5): 64,
    (3, 1): 128,
    (4, 4): 56,
    (24, 8): 128,
    (40, 40): 128,
    (96, 48): 64,
    (128, 64): 128,
    (256, 128): 56,
}


@DTYPES
@pytest.mark.parametrize("norm", ["per head", "across heads"])
@pytest.mark.parametrize(("heads", "width"), HEADS.items(), ids=str)
@pytest.mark.usefixtures("poisoned_memory")
def test_numbers_of_heads(heads, width, norm, dtype, target):
    check(make_case(target, dtype, batch=1, tokens=2, heads=heads, width=width, norm=norm), target, schedule=1)


@DTYPES
@pytest.mark.parametrize("norm", ["per head", "across heads"])
def test_weights_in_half_precision(norm, dtype, target):
    check(make_case(target, dtype, norm=norm, weight_dtype=dtype), target)


@DTYPES
def test_small_numbers_meet_eps_and_large_ones_do_not_overflow(dtype, target):
    case = make_case(target, dtype, tokens=3)
    case.q[:, 0] *= 1e-3
    case.k[:, 0] = 0
    case.q[:, 1] = 60000.0  # the square does not fit float16
    out = check(case, target)
    assert out.isfinite().all()


@DTYPES
def test_without_norm_and_rotation_the_bits_stay(dtype, target):
    case = make_case(target, dtype, norm="no norm", rotated=False)
    for x in (case.q, case.k, case.v):
        x.view(torch.int16)[:, 1, 0, :4] = torch.tensor([0x7FFF, 0x7FE1, -1, -(2**15)], dtype=torch.int16)
    with target.kernels(KERNEL):
        out = kv_write(*case.arguments())
    pages = (case.k_pages, case.v_pages)
    for actual, x in ((out, case.q), *((case.written(p), x) for p, x in zip(pages, (case.k, case.v), strict=True))):
        assert torch.equal(actual.view(torch.int16), x.view(torch.int16))


def test_no_tokens(target):
    case = make_case(target, tokens=0, rotated=False)
    with target.kernels(KERNEL):
        assert kv_write(*case.arguments()).shape == (2, 0, 4, 64)
    assert case.k_pages.isnan().all() and case.v_pages.isnan().all()


def test_the_kernel_is_what_runs(target, monkeypatch):
    calls, compiled = [], target.module.kv_write_portable
    monkeypatch.setattr(target.module, "kv_write_portable", lambda *a: (calls.append(a), compiled(*a)))
    check(make_case(target), target)
    assert len(calls) == 1


# ---- views ----


@DTYPES
@WIDTHS
@pytest.mark.parametrize("norm", ["no norm", "per head", "across heads"])
@pytest.mark.parametrize("of_rows", [False, True], ids=["one rotation", "rotations of rows"])
def test_padded_rows(of_rows, norm, width, dtype, target):
    case = make_case(target, dtype, tokens=65, width=width, norm=norm, of_rows=of_rows)
    pages = [padded_rows(x) for x in (case.k_pages, case.v_pages)]
    angles = [padded_rows(x) for x in (case.cos, case.sin)]
    tokens = [padded_rows(x) for x in (case.q, case.k, case.v)]
    check(Case(*tokens, case.q_weight, case.k_weight, *angles, *pages, strided(case.page_ids)), target)
    for x in pages:
        around = x._base.numel() - x.numel()
        assert x._base.isnan().sum() == around + x.numel() - case.v.numel()


def test_slices_of_a_fused_projection(target):
    case = make_case(target, tokens=65, heads=(6, 2))
    fused = torch.randn(2, 65, 10 * 64, device=target.device).bfloat16()
    q, k, v = (x.unflatten(2, (-1, 64)) for x in fused.split((6 * 64, 2 * 64, 2 * 64), 2))
    check(replace(case, q=q, k=k, v=v), target)


def test_heads_may_come_before_tokens(target):
    case = make_case(target, tokens=9)
    tokens = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (case.q, case.k, case.v)]
    check(Case(*tokens, *case.arguments()[3:]), target)


@DTYPES
def test_pools_of_more_than_2_to_the_31_elements(dtype, target):
    case = make_case(target, dtype, batch=1, tokens=65, heads=(2, 1))
    memory = torch.empty(2**31 + 64 * 64, dtype=dtype, device=target.device)  # only the pages below are touched
    pages = memory.as_strided((3, 64, 1, 64), (2**30, 64, 64, 1)).fill_(torch.nan)
    ids = torch.tensor([[2, 1]], dtype=torch.int32, device=target.device)
    check(replace(case, k_pages=pages, page_ids=ids, v_pages=case.v_pages[:3]), target)
    pages.fill_(torch.nan)
    check(replace(case, v_pages=pages, page_ids=ids, k_pages=torch.full_like(case.k_pages[:3], torch.nan)), target)


def test_tokens_more_than_2_to_the_31_elements_apart(target):
    case = make_case(target, tokens=2)
    memory = torch.empty(2**31 + 2 * 4 * 64, dtype=torch.bfloat16, device=target.device)
    q = memory.as_strided(case.q.shape, (2**31, 256, 64, 1)).copy_(case.q)
    check(replace(case, q=q), target)


# ---- wrong page tables that were not checked before the launch ----


@DTYPES
@pytest.mark.parametrize("wrong", [ABSURD_PAGE, -1, 6, -(2**31)], ids=str)
@pytest.mark.usefixtures("poisoned_memory")
def test_a_page_outside_the_pool_is_not_written_and_its_queries_are_nan(wrong, dtype, target):
    case = make_case(target, dtype, tokens=65, norm="across heads")
    case.page_ids[0, 1] = case.page_ids[1, 0] = wrong
    assert len(case.k_pages) == 6
    out = torch.empty_like(case.q)
    target.module.kv_write_portable(
        *(view(x) for x in case.rows_of_angles().arguments()), view(out), EPS, stream_of(target)
    )
    lost = torch.zeros(2, 65, dtype=torch.bool, device=target.device)
    lost[0, 64] = lost[1, :64] = True
    assert torch.equal(out.isnan().all((2, 3)), lost) and torch.equal(out.isnan().any((2, 3)), lost)

    good = replace(case.fresh(), page_ids=torch.tensor([[0, 1], [2, 3]], dtype=torch.int32, device=target.device))
    expected = check(good, target)
    assert torch.equal(out[~lost], expected[~lost])
    used = [(case.page_ids[0, 0], slice(None), 0), (case.page_ids[1, 1], slice(0, 1), 3)]
    for pages, expected_pages in ((case.k_pages, good.k_pages), (case.v_pages, good.v_pages)):
        assert (~pages.isnan()).sum() == 65 * 2 * 64
        for page, slots, same in used:
            assert torch.equal(pages[page, slots], expected_pages[same, slots])


def stream_of(target) -> tuple[int, int]:
    return (0, 0) if target.device.type == "cpu" else (target.device.index, 0)


def test_the_cpu_looks_at_the_page_ids_first(target):
    case = make_case(target, batch=1)
    if target.device.type != "cpu":
        pytest.skip("a GPU would have to wait for the values")
    for ids, message in (([[3]], "expected ids in 0..2"), ([[-1]], "expected ids in 0..2")):
        with target.kernels(KERNEL), pytest.raises(ValueError, match=f"page_ids: {message}"):
            kv_write(*replace(case, page_ids=torch.tensor(ids).int()).arguments())
    assert case.k_pages.isnan().all() and case.v_pages.isnan().all()


# ---- what the kernel does not do ----

TOKENS, PAGES = ("q", "k", "v"), ("k_pages", "v_pages")
UNSUPPORTED = {
    "float32": (lambda c: {name: getattr(c, name).float() for name in (*TOKENS, *PAGES)}, "k_pages: .* got float32"),
    "a head width of 32": (
        lambda c: (
            {name: getattr(c, name)[..., :32] for name in (*TOKENS, *PAGES)}
            | {"q_weight": None, "k_weight": None, "cos": None, "sin": None}
        ),
        "q: expected a head width of 56, 64 or 128 for this kernel, got 32",
    ),
    "every second element": (lambda c: {"q": every_second(c.q)}, "q: expected rows of adjacent elements"),
    "keys in odd places": (lambda c: {"k": strided(c.k)}, "k: expected rows .* multiples of 16 bytes"),
    "values in odd places": (lambda c: {"v": strided(c.v)}, "v: expected rows .* multiples of 16 bytes"),
    "pages in odd places": (lambda c: {"k_pages": strided(c.k_pages)}, "k_pages: expected rows of adjacent"),
    "value pages in odd places": (lambda c: {"v_pages": strided(c.v_pages)}, "v_pages: expected rows of adjacent"),
    "cosines in odd places": (lambda c: {"cos": strided(c.cos)}, "cos: expected rows of adjacent elements"),
    "sines in odd places": (lambda c: {"sin": strided(c.sin)}, "sin: expected rows of adjacent elements"),
    "a weight with gaps": (lambda c: {"q_weight": every_second(c.q_weight)}, "q_weight: expected rows of adjacent"),
    "a float64 weight": (
        lambda c: {"k_weight": c.k_weight.double()},
        "k_weight: expected float32 or bfloat16 for this kernel, got another dtype",
    ),
    "a weight of the other half precision": (
        lambda c: {"q_weight": c.q_weight.half()},
        "q_weight: expected float32 or bfloat16 for this kernel, got float16",
    ),
}


@pytest.mark.parametrize(("change", "message"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_unsupported_arguments_are_refused_and_nothing_is_written(change, message, target):
    case = replace((good := make_case(target)), **change(good))
    with target.kernels(KERNEL), pytest.raises(target.module.Unsupported, match=message):
        kv_write(*case.arguments())
    assert case.k_pages.isnan().all() and case.v_pages.isnan().all()
    kv_write(*case.arguments())  # the composition does them


@pytest.mark.parametrize(("heads", "width", "most"), [((130, 65), 128, 256), ((257, 257), 56, 512)])
def test_more_heads_than_registers_are_refused(heads, width, most, target):
    case = make_case(target, tokens=1, heads=heads, width=width)
    got = heads[0] + 2 * heads[1]
    with target.kernels(KERNEL), pytest.raises(ValueError, match=rf"q: expected at most {most} heads .* got {got}"):
        kv_write(*case.arguments())


BAD = {
    "q width": (lambda c: {"q": c.q[..., :32]}, r"q: expected shape \[any, any, any, 64\], got \[2, 5, 4, 32\]"),
    "q heads": (lambda c: {"q": c.q[:, :, :3]}, "q: expected a number of heads .* multiple of the pages' 2, got 3"),
    "k tokens": (lambda c: {"k": c.k[:, :4]}, r"k: expected shape \[2, 5, 2, 64\], got \[2, 4, 2, 64\]"),
    "v heads": (lambda c: {"v": c.v[:, :, :1]}, r"v: expected shape \[2, 5, 2, 64\], got \[2, 5, 1, 64\]"),
    "k dtype": (lambda c: {"k": c.k.half()}, "k: expected bfloat16, got float16"),
    "weight": (lambda c: {"k_weight": c.q[0, 0, :3].flatten()}, r"k_weight: .* \[64\] or \[128\], got \[192\]"),
    "cos length": (lambda c: {"cos": c.cos[:, :4]}, r"cos: expected shape \[2, 5, 32\], got \[2, 4, 32\]"),
    "cos rows": (lambda c: {"cos": c.cos[:1]}, r"cos: expected shape \[2, 5, 32\], got \[1, 5, 32\]"),
    "sin dtype": (lambda c: {"sin": c.sin.half()}, "sin: expected float32, got float16"),
    "no sin": (lambda c: {"sin": None}, "sin: expected a tensor, as cos is one, got None"),
    "no cos": (lambda c: {"cos": None}, "sin: expected None, as cos is None, got a tensor"),
    "page size": (lambda c: {"k_pages": c.k_pages[:, :32]}, r"k_pages: expected shape \[any, 64, any, any\]"),
    "value pages": (lambda c: {"v_pages": c.v_pages[1:]}, r"v_pages: expected shape \[4, 64, 2, 64\], got \[3,"),
    "table": (lambda c: {"page_ids": c.page_ids[:1]}, r"page_ids: expected shape \[2, 1\], got \[1, 1\]"),
    "table dtype": (lambda c: {"page_ids": c.page_ids.long()}, "page_ids: expected int32, got int64"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_the_compiled_function_checks_for_itself(change, message, target):
    good = make_case(target).rows_of_angles()
    case = replace(good, **change(good))
    out = torch.zeros_like(case.q)
    with pytest.raises(ValueError, match=message):
        target.module.kv_write_portable(
            *(view(x) for x in case.rows_of_angles().arguments()), view(out), EPS, stream_of(target)
        )
    assert case.k_pages.isnan().all() and case.v_pages.isnan().all() and (out == 0).all()


# ---- as a torch op ----


def test_opcheck(target):
    case = make_case(target, tokens=65, norm="across heads")
    case.k_pages.zero_(), case.v_pages.zero_()
    with target.kernels(KERNEL):
        torch.library.opcheck(torch.ops.aapt.kv_write.default, (*case.arguments(), EPS))


def test_compile_keeps_the_mutation(target):
    case = make_case(target, tokens=65)
    eager = case.fresh()

    def doubled(case_pages: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return kv_write(2 * case.q, case.k, case.v, *case.arguments()[3:7], *case_pages, case.page_ids)

    with target.kernels(KERNEL):
        out = torch.compile(doubled, fullgraph=True, backend="aot_eager")((case.k_pages, case.v_pages))
        expected = doubled((eager.k_pages, eager.v_pages))
    assert torch.equal(out, expected)
    assert_right(out, replace(case, q=2 * case.q))
    for pages, expected_pages in ((case.k_pages, eager.k_pages), (case.v_pages, eager.v_pages)):
        assert_near(pages, expected_pages, 0.0)
