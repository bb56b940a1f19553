# SPDX-License-Identifier: Apache-2.0
"""A suite per op: shapes of real models, tiny ones to try it out, and the case of a shape.

FLOP and bytes count the work itself. The first shape of a suite is the most important one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
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
    ring_conv3d,
)
from aapt_fast.streaming.pages import valid_slots
from aapt_fast.verification import baselines
from aapt_fast.verification.case import Case, Setting

LATENT_CHANNELS, PATCH = 16, 2

LAYERS = {
    27: ("same", (3, 3, 3), 1, 1),
    9: ("same", (1, 3, 3), 1, 1),
    4: ("upsample", (1, 3, 3), 2, 1),
    3: ("double_time", (3, 1, 1), 1, 2),
    1: ("shuffle", (1, 1, 1), 2, 1),
}
"""Layers by the taps of their packed weight: mode of `ring_conv3d`, kernel size, factors of space and time."""

RESULT, NORM, COLOURS = range(3)
"""What a layer of a decoder leaves: its result; only the norm of that, for the next layer; colours."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Suite:
    """The shapes of an op, and `build(shape, setting)`."""

    build: Callable[[Shape, Setting], Case]
    shapes: tuple[Shape, ...]
    tiny: Shape
    dtype: torch.dtype = torch.bfloat16


def attention_case(shape: Shape, setting: Setting) -> Case:
    """Attention of one frame's tokens over a paged window; shape: query tokens, keys, heads, head width.

    Keys and values lie as the cache keeps them: every frame starts on a page, pages lie anywhere in the pool. Baselines
    get plain contiguous tensors, or gather them from the pages first, as torch code has to.
    """
    tokens, keys, heads, width = shape
    flops = 4.0 * tokens * keys * heads * width
    moved = setting.dtype.itemsize * heads * width * (2 * tokens + 2 * keys)
    case = Case("paged_attention", shape, setting.dtype, flops, moved)
    q = setting.randn(1, tokens, heads, width)
    k, v = setting.randn(2, keys, heads, width).unbind()
    contiguous = [x.transpose(-3, -2).contiguous() for x in (q, k[None], v[None])]  # [1, H, tokens or keys, D]
    table = pages(k, v, tokens)
    slots = valid_slot_numbers(*table[2:])
    backends = baselines.BACKENDS if setting.device.type == "cuda" else {"on a CPU": None}
    for name, backend in backends.items():
        case.systems[f"SDPA {name}, contiguous"] = partial(baselines.attention, backend, *contiguous)
        gathered = partial(baselines.gathered_attention, backend, q, *table[:2], slots)
        case.systems[f"SDPA {name}, gathered from pages"] = gathered
        case.elsewhere.add(f"SDPA {name}, contiguous")
    for library in baselines.LIBRARIES:
        case.elsewhere.add(f"{library}, contiguous")
        try:
            case.systems[f"{library}, contiguous"] = baselines.library_attention(library, q, k, v)
        except Exception as error:  # installed, but for another GPU or torch
            case.unavailable[f"{library}, contiguous"] = f"{type(error).__name__}: {error}"
    case.add_op(setting, lambda: paged_attention(q, *table)[0])
    return case


def pages(k: Tensor, v: Tensor, tokens: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lay k and v [S, H, D], as frames of `tokens`, into random pages.

    Returns k_pages and v_pages [P, 64, H, D], ids and counts [1, M].
    """
    counts = []
    for start in range(0, len(k), tokens):
        counts += valid_slots(min(tokens, len(k) - start))
    valid, ids = torch.tensor(counts), torch.randperm(len(counts))
    slots = torch.arange(PAGE_SLOTS)[None] < valid[:, None]  # [M, 64]
    rows = (ids[:, None] * PAGE_SLOTS + torch.arange(PAGE_SLOTS))[slots].to(k.device)
    pools = []
    for x in (k, v):
        flat = torch.zeros(len(counts) * PAGE_SLOTS, *x.shape[1:], dtype=x.dtype, device=x.device)
        pools.append(flat.index_copy_(0, rows, x).view(len(counts), PAGE_SLOTS, *x.shape[1:]))
    page_ids, page_valid = (x.int()[None].to(k.device) for x in (ids, valid))
    return pools[0], pools[1], page_ids, page_valid


def valid_slot_numbers(ids: Tensor, counts: Tensor) -> Tensor:
    """The slots of a pool, int64 [S], that a page table with ids and counts [1, M] lists, in its order."""
    slots = torch.arange(PAGE_SLOTS, device=ids.device)
    numbers = ids[0].long()[:, None] * PAGE_SLOTS + slots  # [M, 64]
    return numbers[slots < counts[0][:, None]]


def kv_write_case(shape: Shape, setting: Setting) -> Case:
    """Norm and rotation of queries and keys, and the write into pages; shape: tokens, heads, head width.

    q, k and v are views of one projection. Every system has pages of its own, so that none can live on what another
    one wrote. Three tensors are read, three written; per element of q and k 4 FLOP for a norm, 3 for a rotation.
    """
    tokens, heads, width = shape
    elements = tokens * heads * width
    moved = 6 * elements * setting.dtype.itemsize + 2 * 4 * tokens * width // 2
    case = Case("kv_write", shape, setting.dtype, 7.0 * 2 * elements, moved)
    q, k, v = setting.randn(1, tokens, 3, heads, width).unbind(2)
    q_weight, k_weight = setting.randn(2, width).unbind()
    angles = setting.randn32(tokens, width // 2)
    count = -(-tokens // PAGE_SLOTS)
    ids = torch.randperm(count + 3)[:count].int()[None].to(setting.device)
    shared = (q, k, v, q_weight, k_weight, angles.cos(), angles.sin())

    def own_pages() -> tuple[Tensor, Tensor]:
        k_pages = torch.zeros(count + 3, PAGE_SLOTS, heads, width, dtype=q.dtype, device=q.device)
        return k_pages, torch.zeros_like(k_pages)

    def write(k_pages: Tensor, v_pages: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return kv_write(*shared, k_pages, v_pages, ids), k_pages, v_pages

    case.add_plain(setting, partial(baselines.kv_write, *shared, *own_pages(), ids))
    case.add_composition(setting, partial(write, *own_pages()))
    case.add_kernels(setting, partial(write, *own_pages()))
    return case


def gate_residual_norm_case(shape: Shape, setting: Setting) -> Case:
    """The gated residual sum and the norm after it, as in a block of the generator; shape: tokens, width.

    Gate, scale and shift are [1, 1, d]. 8 FLOP per element.
    """
    tokens, width = shape
    moved = (4 * tokens + 3) * width * setting.dtype.itemsize
    case = Case("gate_residual_norm", shape, setting.dtype, 8.0 * tokens * width, moved)
    x, y = setting.randn(2, 1, tokens, width).unbind()
    arguments = (x, y, *setting.randn(3, 1, 1, width).unbind())
    case.add_plain(setting, partial(baselines.gate_residual_norm, *arguments))
    case.add_op(setting, partial(gate_residual_norm, *arguments))
    return case


def channel_concat_case(shape: Shape, setting: Setting) -> Case:
    """Patch embedding of noise, recycled frame and control; shape: control channels, latent height and width, d.

    16 latent channels, patches of 2 x 2. 2 * tokens * inputs * d FLOP with inputs = 4 * (32 + control channels).
    """
    controls, height, width, features = shape
    tokens = (height // PATCH) * (width // PATCH)
    inputs = (2 * LATENT_CHANNELS + controls) * PATCH**2
    moved = setting.dtype.itemsize * (tokens * (inputs + features) + (inputs + 1) * features)
    case = Case("channel_concat", shape, setting.dtype, 2.0 * tokens * inputs * features, moved)
    noised, recycled = setting.randn(2, 1, LATENT_CHANNELS, height, width).unbind()
    control = setting.randn(1, controls, height, width) if controls else None
    weight, bias = setting.randn(features, inputs) / inputs**0.5, setting.randn(features)
    arguments = (noised, recycled, control, weight, bias, PATCH)
    case.add_plain(setting, partial(baselines.channel_concat, *arguments))
    case.add_op(setting, partial(channel_concat, *arguments))
    return case


def philox_case(shape: Shape, setting: Setting) -> Case:
    """Normal noise of one step from (seed, step); shape: channels, latent height and width.

    One float32 tensor is written. 40 integer and 15 floating point operations per element, roughly. torch.randn makes
    other numbers, which depend on earlier calls; it shows the cost of a stateful generator.
    """
    channels, height, width = shape
    count = channels * height * width
    case = Case("philox_normal", shape, torch.float32, 15.0 * count, 4 * count)
    seed, step = (torch.tensor([number], device=setting.device) for number in (7, 3))
    case.add_op(setting, partial(philox_normal, seed, step, (channels, height, width)))
    case.systems["torch.randn (other numbers)"] = partial(torch.randn, 1, *shape, device=setting.device)
    case.other_numbers.add("torch.randn (other numbers)")
    return case


def clean_frame_case(shape: Shape, setting: Setting) -> Case:
    """The end of an evaluation, velocity tokens and noised frame to clean frame; shape: channels, height, width.

    As in a generator whose last linear layer gives the velocity. 2 FLOP per element.
    """
    channels, height, width = shape
    count = channels * height * width
    moved = count * (setting.dtype.itemsize + 2 * 4)
    case = Case("clean_frame", shape, setting.dtype, 2.0 * count, moved)
    tokens = setting.randn(1, height // PATCH * (width // PATCH), channels * PATCH**2)
    arguments = (tokens, setting.randn32(1, channels, 1, height, width), setting.randn32(1).abs(), PATCH)
    case.add_plain(setting, partial(baselines.clean_frame, *arguments))
    case.add_op(setting, partial(clean_frame, *arguments))
    return case


def ring_conv3d_case(shape: Shape, setting: Setting) -> Case:
    """A layer of a decoder on the frames of a step; shape: frames, height, width, channels, columns, taps.

    A seventh number says what it leaves, NORM or COLOURS, if it is not the RESULT.
    The ring has no slot to spare, and starts in its second one. Columns are rows of the weight, of a phase: 2 * columns
    * channels * taps FLOP per pixel, four times that for the four phases of an upsampling. Every system has a result of
    its own. Torch code puts the past before the frames first; without that it shows what the convolution takes.
    """
    frames, height, width, channels, columns, taps, *more = shape
    leaves = more[0] if more else RESULT
    mode, kernel, space, time = LAYERS[taps]
    past = kernel[0] - 1
    out_channels = columns // time // (4 if mode == "shuffle" else 1)
    result = (1, time * frames, space * height, space * width, out_channels)
    phases = 4 if mode == "upsample" else 1
    flops = 2.0 * frames * height * width * channels * columns * taps * phases
    numbers = (past + frames) * height * width * channels + phases * taps * columns * channels + math.prod(result)
    written = math.prod(result) * (1 if leaves == COLOURS else setting.dtype.itemsize)
    case = Case("ring_conv3d", shape, setting.dtype, flops, numbers * setting.dtype.itemsize + written)
    clip = setting.randn(1, past + frames, height, width, channels)
    weight = setting.randn(columns, channels, *kernel) / (channels * math.prod(kernel)) ** 0.5
    bias, residual = setting.randn(columns), setting.randn(*result)
    ring, packed = clip.roll(1, 1), pack_weight(weight, mode)
    start = torch.ones(1, dtype=torch.int32, device=setting.device)

    gamma = setting.randn(out_channels)

    def convolve(out: Tensor) -> Tensor:
        norm = (gamma, out) if leaves == NORM else (None, None)
        ring_conv3d(ring, start, packed, bias, residual, None if leaves == NORM else out, None, frames, mode, *norm)
        return out

    def left(y: Tensor) -> Tensor:
        if leaves == NORM:
            return baselines.norm_silu(y, gamma, None, 0, 1e-12)
        return baselines.colours(y) if leaves == COLOURS else y

    def joined(*parts: Any) -> Tensor:
        return left(baselines.joined_convolution(*parts))

    def convolved(*parts: Any) -> Tensor:
        return left(baselines.convolution(*parts))

    parts = (clip[:, :past].contiguous(), clip[:, past:].contiguous())
    rest = (weight.contiguous(memory_format=torch.channels_last_3d), bias, residual, mode, out_channels)
    case.add_plain(setting, partial(joined, *parts, *rest))
    case.systems["plain torch, frames joined before"] = partial(convolved, clip, *rest)
    case.elsewhere.add("plain torch, frames joined before")
    dtype = torch.uint8 if leaves == COLOURS else residual.dtype
    case.add_composition(setting, partial(convolve, torch.empty_like(residual, dtype=dtype)))
    case.add_kernels(setting, partial(convolve, torch.empty_like(residual, dtype=dtype)))
    return case


def norm_silu_case(shape: Shape, setting: Setting) -> Case:
    """Norm and SiLU before a convolution; shape: frames, height, width, channels, groups (0: norm of a pixel).

    About 10 FLOP per element. Every system has a result of its own.
    """
    *size, groups = shape
    count = math.prod(size)
    case = Case("norm_silu", shape, setting.dtype, 10.0 * count, 2 * count * setting.dtype.itemsize)
    x, gamma = setting.randn(1, *size), setting.randn(size[-1])
    beta = setting.randn(size[-1]) if groups else None
    eps = 1e-6 if groups else 1e-12

    def normalise(out: Tensor) -> Tensor:
        norm_silu(x, gamma, beta, groups, eps, out, None)
        return out

    case.add_plain(setting, partial(baselines.norm_silu, x, gamma, beta, groups, eps))
    case.add_composition(setting, partial(normalise, torch.empty_like(x)))
    case.add_kernels(setting, partial(normalise, torch.empty_like(x)))
    return case


SUITES = {
    "paged_attention": Suite(
        attention_case,
        (
            (1196, 35880, 24, 128),  # aapt-8b at 736x416, 30 frames
            (1196, 38272, 24, 128),  # 32 frames: sink, 30 past ones, the present one
            (1560, 32760, 12, 128),  # Wan 1.3B at 832x480, 21 frames
            (3600, 61200, 24, 128),  # aapt-8b at 1280x720, 17 frames
        ),
        (65, 130, 2, 64),
    ),
    "kv_write": Suite(kv_write_case, ((1196, 24, 128), (3600, 24, 128), (1560, 12, 128)), (65, 2, 64)),
    "gate_residual_norm": Suite(gate_residual_norm_case, ((1196, 3072), (3600, 3072), (1560, 1536)), (65, 128)),
    "channel_concat": Suite(
        channel_concat_case, ((0, 52, 92, 3072), (64, 52, 92, 3072), (64, 90, 160, 3072)), (4, 8, 12, 64)
    ),
    "philox_normal": Suite(philox_case, ((16, 52, 92), (16, 90, 160)), (3, 5, 7), torch.float32),
    "clean_frame": Suite(clean_frame_case, ((16, 52, 92), (16, 90, 160), (48, 44, 80)), (8, 6, 10)),
    "ring_conv3d": Suite(
        ring_conv3d_case,
        (
            (4, 416, 736, 96, 96, 27),  # the Wan decoder at 736x416
            (4, 208, 368, 192, 192, 27),
            (2, 104, 184, 384, 384, 27),
            (4, 208, 368, 192, 96, 4),  # its last upsampling
            (4, 416, 736, 96, 3, 27),
            (4, 416, 736, 96, 96, 27, NORM),
            (4, 416, 736, 96, 3, 27, COLOURS),
            (4, 416, 736, 64, 64, 27),  # the light decoder of AAPT
            (4, 416, 736, 128, 128, 27),
        ),
        (2, 5, 6, 16, 24, 27),
    ),
    "norm_silu": Suite(
        norm_silu_case,
        (
            (4, 416, 736, 96, 0),  # the Wan decoder at 736x416
            (2, 104, 184, 384, 0),
            (4, 416, 736, 64, 32),  # the light decoder of AAPT
            (1, 52, 92, 512, 32),
        ),
        (2, 5, 6, 24, 8),
    ),
}
"""By op."""
