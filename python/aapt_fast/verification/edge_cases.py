# SPDX-License-Identifier: Apache-2.0
"""Small hostile inputs for every op with kernels, with the results that a kernel must give.

Lengths are 0, 1, 63, 64 and 65 where an op has them. Memory around the inputs, slots of pages that must not be read or
written, and pages that are in no list hold NaN; unused entries of a page table hold absurd ids.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aapt_fast.ops import (
    PAGE_SLOTS,
    channel_concat,
    clean_frame,
    gate_residual_norm,
    kv_write,
    norm_silu,
    pack_weight,
    paged_attention,
    philox_normal,
    reference,
    ring_conv3d,
    use_kernels,
)
from aapt_fast.verification import baselines
from aapt_fast.verification.case import Setting
from aapt_fast.verification.hostile import (
    LENGTHS,
    PagedCase,
    every_second,
    padded_rows,
    paged_case,
    strided,
    surrounded,
)

EPS = 1e-6
PATCH = 2
GRIDS = {1: (1, 1), 63: (7, 9), 64: (8, 8), 65: (5, 13)}
"""Patches down and across, by tokens."""

LSE_FLOOR = 2e-5
"""Error of a log-sum-exp that is always allowed: it is float32 whatever the dtype of the inputs."""


@dataclass(frozen=True)
class Expected:
    """One result of an op: the reference in float64, torch in the dtype of the inputs, an error that is allowed."""

    oracle: Tensor
    torch: Tensor
    floor: float = 1e-6


@dataclass(frozen=True)
class EdgeCase:
    """A call of an op, and its results."""

    name: str
    inputs: tuple[Tensor, ...]
    """Tensors that `call` reads."""
    call: Callable[[], tuple[Tensor, ...]]
    """Gives fresh results at each call."""
    expected: tuple[Expected, ...]


def attention(setting: Setting, width: int | None) -> Iterator[EdgeCase]:
    """Attention over pages: rows of 0 to 65 keys, unused entries, frames of many pages, a bias per page."""
    assert width is not None
    lengths = [[0, 0, 0], [1, 0, 0], [63, 0, 0], [0, 64, 0], [64, 0, 1]]
    for tokens in (0, *LENGTHS):
        yield _attention(f"{tokens} queries over 0 to 65 keys", setting, width, lengths, tokens)
    many = [[64, 64, 9, 64, 0, 64, 64, 1, 64, 64, 30, 64, 64]]
    yield _attention("129 queries over many pages", setting, width, many, 129)
    yield _attention("a bias per page", setting, width, [[64, 0, 13, 64], [5, 64, 64, 0]], 17, biased=True)


def _attention(
    name: str, setting: Setting, width: int, valid: list[list[int]], tokens: int, biased: bool = False
) -> EdgeCase:
    case = paged_case(valid, kv_heads=1, head_dim=width, dtype=setting.dtype, device=setting.device)
    q = setting.randn(len(valid), tokens, 2, width)
    bias = None
    if biased:
        bias = torch.where(case.page_valid > 0, setting.randn32(*case.page_valid.shape), torch.nan)
    table = (case.page_ids, case.page_valid)
    wide = (q.double(), case.k_pages.double(), case.v_pages.double(), *table, width**-0.5)
    used = None if bias is None else torch.where(case.page_valid > 0, bias, 0)
    out, lse = reference.paged_attention(*wide, None if used is None else used.double())
    expected = (Expected(out, _plain_attention(q, case, used)), Expected(lse, lse, LSE_FLOOR))
    pages = (padded_rows(case.k_pages), padded_rows(case.v_pages))
    arguments = (padded_rows(q), *pages, *table, None, bias)
    return EdgeCase(name, _tensors(arguments), lambda: paged_attention(*arguments), expected)


def _tensors(arguments: Iterable[Any]) -> tuple[Tensor, ...]:
    return tuple(each for each in arguments if isinstance(each, Tensor))


def _plain_attention(q: Tensor, case: PagedCase, bias: Tensor | None) -> Tensor:
    """Attention in torch, every operation rounded to the dtype of q [B, N, H, D] -> [B, N, H, D]."""
    out = torch.zeros_like(q)
    for row, (keys, values) in enumerate(zip(case.keys, case.values, strict=True)):
        keys, values = (x.repeat_interleave(q.shape[2], 1).transpose(0, 1) for x in (keys, values))  # [H, S, D]
        scores = q[row].transpose(0, 1) @ keys.transpose(1, 2) * q.shape[-1] ** -0.5
        if bias is not None:
            scores = scores + bias[row].repeat_interleave(case.page_valid[row]).to(q.dtype)
        out[row] = (scores.softmax(-1) @ values).transpose(0, 1)
    return out


def writing(setting: Setting, width: int | None) -> Iterator[EdgeCase]:
    """Norm, rotation and the write into pages, of which every slot that no token goes to stays NaN."""
    assert width is not None
    for tokens in LENGTHS:
        yield _writing(f"{tokens} tokens", setting, width, tokens, (width, width), rotated=True)
    yield _writing("no tokens", setting, width, 0, (width, width), rotated=False)
    yield _writing("norms across heads", setting, width, 65, (4 * width, 2 * width), rotated=True)
    yield _writing("neither norm nor rotation", setting, width, 65, None, rotated=False)


def _writing(
    name: str, setting: Setting, width: int, tokens: int, weights: tuple[int, int] | None, rotated: bool
) -> EdgeCase:
    batch, heads, kv_heads = 2, 4, 2
    entries = -(-tokens // PAGE_SLOTS)
    q, k, v = (setting.randn(batch, tokens, count, width) for count in (heads, kv_heads, kv_heads))
    q_weight, k_weight = (None, None) if weights is None else (setting.randn32(size) for size in weights)
    angles = setting.randn32(2, tokens, width // 2)
    cos, sin = (angles[0].cos(), angles[0].sin()) if rotated else (None, None)
    ids = torch.randperm(batch * entries + 2)[: batch * entries].view(batch, entries).int().to(setting.device)

    def nan_pages(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        shape = (batch * entries + 2, PAGE_SLOTS, kv_heads, width)
        pages = torch.full(shape, torch.nan, dtype=dtype, device=setting.device)
        return pages, pages.clone()

    tables = [None if x is None else x.double() for x in (q_weight, k_weight, cos, sin)]
    oracle_pages, plain_pages = nan_pages(torch.float64), nan_pages(setting.dtype)
    oracle_q = reference.kv_write(q.double(), k.double(), v.double(), *tables, *oracle_pages, ids, EPS)
    plain_q = _plain_norm(q, q_weight, cos, sin)
    # the reference without norm and rotation only writes
    reference.kv_write(plain_q, _plain_norm(k, k_weight, cos, sin), v, None, None, None, None, *plain_pages, ids, EPS)
    oracles, plain = (oracle_q, *oracle_pages), (plain_q, *plain_pages)

    views = [None if x is None else padded_rows(x) for x in (q, k, v, cos, sin)]
    arguments: tuple[Any, ...] = (*views[:3], q_weight, k_weight, *views[3:])

    def call() -> tuple[Tensor, ...]:
        pages = nan_pages(setting.dtype)
        every: tuple[Any, ...] = (*arguments, *pages, ids, EPS)
        return kv_write(*every), *pages

    return EdgeCase(name, (*_tensors(arguments), ids), call, tuple(map(Expected, oracles, plain)))


def _plain_norm(x: Tensor, weight: Tensor | None, cos: Tensor | None, sin: Tensor | None) -> Tensor:
    """Norm and rotation in torch, every operation rounded to the dtype of x [B, N, H, D] -> [B, N, H, D]."""
    if weight is not None:
        groups = x if weight.shape[0] == x.shape[-1] else x.flatten(2)
        x = F.rms_norm(groups, weight.shape, weight.to(x.dtype), EPS).view(x.shape)
    return x if cos is None or sin is None else reference.rotate(x, cos.to(x.dtype), sin.to(x.dtype))


def residual_norm(setting: Setting, width: int | None) -> Iterator[EdgeCase]:
    """Residual sum, norm and modulation: rows that a warp does and rows that a block does, parts that are missing."""
    for tokens in (0, *LENGTHS):
        yield _residual_norm(f"{tokens} tokens", setting, tokens, 264)
    yield _residual_norm("65 long tokens", setting, 65, 1032)
    yield _residual_norm("the sum only", setting, 65, 264, parts=("y",))
    yield _residual_norm("the norm only", setting, 65, 264, parts=())


def _residual_norm(
    name: str, setting: Setting, tokens: int, width: int, parts: tuple[str, ...] = ("y", "gate", "scale", "shift")
) -> EdgeCase:
    x, y = setting.randn(2, 2, tokens, width).unbind()
    gate, scale, shift = setting.randn(3, 2, 1, width).unbind()
    every = {"y": y, "gate": gate, "scale": scale, "shift": shift}
    dense = [x, *(tensor if part in parts else None for part, tensor in every.items())]
    arguments: tuple[Any, ...] = (*(None if each is None else padded_rows(each) for each in dense), EPS)
    wide: tuple[Any, ...] = (*(None if each is None else each.double() for each in dense), EPS)
    oracles = reference.gate_residual_norm(*wide)
    return EdgeCase(
        name,
        _tensors(arguments),
        lambda: gate_residual_norm(*arguments),
        tuple(map(Expected, oracles, _plain_residual_norm(*dense))),
    )


def _plain_residual_norm(
    x: Tensor, y: Tensor | None, gate: Tensor | None, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Residual and norm in torch, every operation rounded to the dtype of x [B, N, d]."""
    residual = x if y is None else x + (y if gate is None else gate * y)
    normed = F.rms_norm(residual, x.shape[-1:], None, EPS)
    normed = normed if scale is None else normed * (1 + scale)
    return residual, normed if shift is None else normed + shift


def embedding(setting: Setting, width: int | None) -> Iterator[EdgeCase]:
    """Patch embedding of 1 to 65 tokens, with and without control and bias."""
    for tokens in LENGTHS:
        yield _embedding(f"{tokens} tokens", setting, tokens, complete=True)
    yield _embedding("neither control nor bias", setting, 65, complete=False)


def _embedding(name: str, setting: Setting, tokens: int, complete: bool) -> EdgeCase:
    channels, control_channels, features = 17, 12 if complete else 0, 200
    size = tuple(PATCH * patches for patches in GRIDS[tokens])
    columns = (2 * channels + control_channels) * PATCH**2
    noised, recycled = setting.randn(2, 2, channels, *size).unbind()
    control = setting.randn(2, control_channels, *size) if complete else None
    weight, bias = setting.randn(features, columns), setting.randn(features) if complete else None
    dense = (noised, recycled, control, weight, bias)
    wide: tuple[Any, ...] = (*(None if x is None else x.double() for x in dense), PATCH)
    oracle = reference.channel_concat(*wide)
    arguments = (
        strided(noised),
        strided(recycled),
        None if control is None else strided(control),
        padded_rows(weight),
        None if bias is None else every_second(bias),
        PATCH,
    )
    return EdgeCase(
        name,
        _tensors(arguments),
        lambda: (channel_concat(*arguments),),
        (Expected(oracle, baselines.channel_concat(*dense, PATCH)),),
    )


def clean(setting: Setting, width: int | None) -> Iterator[EdgeCase]:
    """Clean frames of 1 to 65 tokens."""
    for tokens, grid in GRIDS.items():
        channels = 16
        velocity = setting.randn(2, tokens, channels * PATCH**2)
        noised = setting.randn32(2, channels, 1, PATCH * grid[0], PATCH * grid[1])
        t = setting.randn32(2).abs()
        oracle = reference.clean_frame(velocity.double(), noised.double(), t.double(), PATCH)
        plain = baselines.clean_frame(velocity, noised, t, PATCH)
        inputs = (padded_rows(velocity), strided(noised), every_second(t))
        yield EdgeCase(f"{tokens} tokens", inputs, _cleaning(inputs), (Expected(oracle, plain),))


def _cleaning(inputs: tuple[Tensor, Tensor, Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (clean_frame(*inputs, PATCH),)


def noise(setting: Setting, width: int | None) -> Iterator[EdgeCase]:
    """Noise of 1 to 65 numbers, and of some blocks of threads, for extreme seeds and steps: torch's numbers."""
    keys = ((0, 0), (-1, 2**40 + 5), (2**63 - 1, 1), (-(2**63), -1))
    seeds, steps = (strided(x) for x in torch.tensor(keys, device=setting.device).T)
    for shape in (*((1, *GRIDS[length]) for length in LENGTHS), (16, 16, 17)):
        with use_kernels("none"):
            expected = philox_normal(seeds, steps, shape)
        yield EdgeCase(
            f"{'x'.join(map(str, shape))} numbers",
            (seeds, steps),
            _drawing(seeds, steps, shape),
            (Expected(expected, expected),),
        )


def _drawing(seeds: Tensor, steps: Tensor, shape: tuple[int, int, int]) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (philox_normal(seeds, steps, shape),)


def convolving(setting: Setting, width: int | None) -> Iterator[EdgeCase]:
    """Layers of decoders on small frames, in rings that start anywhere; slots of no frame hold NaN and keep it.

    Then those whose columns are few enough for a norm in the same pass, and colours.
    """
    for name, rows, kernel, mode, time in (
        ("to RGB", 3, (3, 3, 3), "same", 1),
        ("64 columns", 56, (3, 3, 3), "same", 1),
        ("96 columns", 96, (1, 3, 3), "same", 1),
        ("136 columns", 136, (3, 1, 1), "same", 1),
        ("128 columns", 120, (3, 3, 3), "same", 1),
        ("upsampling", 24, (1, 3, 3), "upsample", 1),
        ("two frames of one", 48, (3, 1, 1), "double_time", 2),
        ("blocks of pixels of columns", 64, (1, 1, 1), "shuffle", 2),
    ):
        yield _convolving(name, setting, rows, kernel, mode, time)
        if mode in ("same", "upsample") and 3 < rows <= 128:
            yield _convolving(f"{name}, with their norm", setting, rows, kernel, mode, time, ("out", "normed"))
    yield _convolving("the norm of 96 columns only", setting, 96, (1, 3, 3), "same", 1, ("normed",))
    yield _convolving("colours", setting, 3, (3, 3, 3), "same", 1, ("colours",))
    yield _convolving("colours of a block of pixels", setting, 12, (3, 3, 3), "same", 1, ("colours",))


def _convolving(
    name: str,
    setting: Setting,
    rows: int,
    kernel: tuple[int, int, int],
    mode: str,
    time: int,
    results: tuple[str, ...] = ("out",),
) -> EdgeCase:
    batch, frames, height, width, channels = 2, 2, 9, 17, 48
    space = 2 if mode in ("upsample", "shuffle") else 1
    seen, written = frames + kernel[0] - 1, frames * time
    start, out_start = (torch.tensor([number], dtype=torch.int32, device=setting.device) for number in (seen, 2))
    ring = setting.randn(batch, seen + 1, height, width, channels)
    ring[:, seen - 1] = torch.nan  # the one slot that is not seen
    weight = pack_weight(setting.randn(rows, channels, *kernel) / (channels * math.prod(kernel)) ** 0.5, mode)
    out_channels = rows // time // (4 if mode == "shuffle" else 1)
    result = (batch, written, space * height, space * width, out_channels)
    dense = (ring, weight, setting.randn(rows), setting.randn(*result), setting.randn(out_channels))

    def convolve(op: Callable[..., None], *tensors: Tensor) -> tuple[Tensor, ...]:
        ring, weight, bias, residual, gamma = tensors
        empty = torch.full((batch, written + 1, *result[2:]), torch.nan, dtype=ring.dtype, device=ring.device)
        made = {each: torch.zeros_like(empty).byte() if each == "colours" else empty.clone() for each in results}
        out, normed = made.get("colours", made.get("out")), made.get("normed")
        norm = (gamma, normed, out_start, EPS) if normed is not None else (None, None, None, EPS)
        op(ring, start, weight, bias, residual, out, out_start, frames, mode, *norm)
        return tuple(x.float() if x.dtype == torch.uint8 else x for x in made.values())

    oracles = convolve(reference.ring_conv3d, *(x.double() for x in dense))
    with use_kernels("none"):
        plain = convolve(ring_conv3d, *dense)
    inputs = tuple(map(surrounded, dense))
    floors = (1 / 255 if each == "colours" else 1e-6 for each in results)  # one colour, by rounding
    expected = tuple(map(Expected, oracles, plain, floors))
    return EdgeCase(name, (*inputs, start, out_start), lambda: convolve(ring_conv3d, *inputs), expected)


def norming(setting: Setting, width: int | None) -> Iterator[EdgeCase]:
    """Norms of 1 to 135 pixels, with lanes and rows of threads that stay idle; slots of no frame hold NaN."""
    for size in ((1, 1), (3, 5), (9, 15)):
        for channels, groups in ((16, 0), (40, 0), (96, 0), (512, 0), (64, 32), (24, 8), (40, 1)):
            yield _norming(
                f"{channels} channels, {groups} groups, {size[0]}x{size[1]} pixels", setting, size, channels, groups
            )


def _norming(name: str, setting: Setting, size: tuple[int, int], channels: int, groups: int) -> EdgeCase:
    x, gamma = 3 * setting.randn(2, 2, *size, channels) + 1, setting.randn(channels)
    beta = setting.randn(channels) if groups else None
    start = torch.tensor([3], dtype=torch.int32, device=setting.device)

    def normalise(op: Callable[..., None], x: Tensor, gamma: Tensor, beta: Tensor | None) -> Tensor:
        out = torch.full((2, 4, *size, channels), torch.nan, dtype=x.dtype, device=x.device)
        op(x, gamma, beta, groups, EPS, out, start)
        return out

    oracle = normalise(reference.norm_silu, x.double(), gamma.double(), None if beta is None else beta.double())
    plain = torch.full_like(oracle, torch.nan, dtype=x.dtype)
    plain[:, [3, 0]] = _plain_norm_silu(x, gamma, beta, groups)
    inputs = (surrounded(x), surrounded(gamma), None if beta is None else surrounded(beta))
    return EdgeCase(
        name, (*_tensors(inputs), start), lambda: (normalise(norm_silu, *inputs),), (Expected(oracle, plain, 2e-6),)
    )


def _plain_norm_silu(x: Tensor, gamma: Tensor, beta: Tensor | None, groups: int) -> Tensor:
    """Norm and SiLU in torch, every operation rounded to the dtype of x [B, T, H, W, C]."""
    if groups == 0:
        return F.silu(F.normalize(x, dim=-1, eps=EPS) * x.shape[-1] ** 0.5 * gamma)
    y = F.group_norm(x.flatten(0, 1).permute(0, 3, 1, 2).contiguous(), groups, gamma, beta, EPS)
    return F.silu(y).permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


EDGE_CASES: dict[str, Callable[[Setting, int | None], Iterator[EdgeCase]]] = {
    "paged_attention": attention,
    "kv_write": writing,
    "gate_residual_norm": residual_norm,
    "channel_concat": embedding,
    "clean_frame": clean,
    "philox_normal": noise,
    "ring_conv3d": convolving,
    "norm_silu": norming,
}
"""By op: (setting, head width or None) -> cases."""
