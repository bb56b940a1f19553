# SPDX-License-Identifier: Apache-2.0
"""Attention of one frame's tokens over a paged window, against the best attention over plain contiguous tensors.

Shape: query tokens x keys x heads x head width, one session. 4 * tokens * keys * heads * width FLOP.
"""

from __future__ import annotations

import importlib
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from aapt_fast.ops import PAGE_SLOTS, paged_attention
from bench.harness.cases import Case, Setting, benchmark_case, case_name

OP = "paged_attention"
SHAPES = (
    (1196, 35880, 24, 128),  # aapt-8b at 736x416, 30 frames
    (1196, 38272, 24, 128),  # 32 frames: sink, 30 past ones, the present one
    (1560, 32760, 12, 128),  # Wan 1.3B at 832x480, 21 frames
    (3600, 61200, 24, 128),  # aapt-8b at 1280x720, 17 frames
)
TINY = ((65, 130, 2, 64),)

LARGEST_COMPOSITION_BYTES = 16 * 2**30
"""The composition keeps a float32 score per pair; beyond this it is not tried."""

BACKENDS = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}


def build(shape: tuple[int, ...], setting: Setting) -> Case:
    """Keys and values as the cache keeps them: every frame starts on a page, pages lie anywhere in the pool."""
    tokens, keys, heads, width = shape
    element = setting.dtype.itemsize
    moved = element * heads * width * (2 * tokens + 2 * keys)
    case = Case(case_name(OP, shape, setting.dtype), OP, 4.0 * tokens * keys * heads * width, moved, setting.dtype)
    q, k, v = setting.randn(1, tokens, heads, width), *setting.randn(2, keys, heads, width).unbind()
    contiguous = [x.transpose(-3, -2).contiguous() for x in (q, k[None], v[None])]  # [1, H, tokens or keys, D]

    if setting.device.type == "cuda":
        for name, backend in BACKENDS.items():
            case.systems[f"SDPA {name}, contiguous"] = partial(_sdpa, backend, *contiguous)
    else:
        case.systems["SDPA on a CPU, contiguous"] = partial(_sdpa, None, *contiguous)
    _add_libraries(case, q, k, v)

    k_pages, v_pages, page_ids, page_valid = pages(k, v, tokens)
    call = partial(_attend, q, k_pages, v_pages, page_ids, page_valid)
    scores = 4 * heads * tokens * keys
    if scores <= LARGEST_COMPOSITION_BYTES:
        case.add_composition(setting, call)
    else:
        case.unavailable["torch composition of paged_attention, eager"] = f"its scores alone take {scores / 1e9:.0f} GB"
    case.add_kernels(setting, call)
    return case


def _attend(*arguments: Tensor) -> Tensor:
    return paged_attention(*arguments)[0]


def _sdpa(backend: SDPBackend | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q [1, H, N, D] -> [1, N, H, D]."""
    if backend is None:
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _add_libraries(case: Case, q: Tensor, k: Tensor, v: Tensor) -> None:
    """FlashAttention 3 and FlashInfer, where they are installed: q [1, N, H, D], k and v [S, H, D]."""
    for label, module, function, arguments in (
        ("FlashAttention 3, contiguous", "flash_attn_interface", "flash_attn_func", (q, k[None], v[None])),
        ("FlashInfer, contiguous", "flashinfer", "single_prefill_with_kv_cache", (q[0], k, v)),
    ):
        try:
            call = getattr(importlib.import_module(module), function)
        except Exception as error:
            case.unavailable[label] = f"{type(error).__name__}: {error}"
            continue
        case.systems[label] = partial(_as_one_batch, call, *arguments)


def _as_one_batch(call, *arguments: Tensor) -> Tensor:
    out = call(*arguments)
    out = out[0] if isinstance(out, tuple) else out
    return out if out.dim() == 4 else out[None]


def pages(k: Tensor, v: Tensor, tokens: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """k, v [S, H, D] as frames of `tokens` in random pages: k_pages, v_pages [P, 64, H, D], ids and counts [1, M]."""
    counts = []
    for start in range(0, len(k), tokens):
        frame = min(tokens, len(k) - start)
        counts += [PAGE_SLOTS] * (frame // PAGE_SLOTS) + ([frame % PAGE_SLOTS] if frame % PAGE_SLOTS else [])
    valid = torch.tensor(counts)
    ids = torch.randperm(len(counts))
    slots = torch.arange(PAGE_SLOTS)[None] < valid[:, None]  # [M, 64]
    rows = (ids[:, None] * PAGE_SLOTS + torch.arange(PAGE_SLOTS))[slots].to(k.device)
    paged = []
    for x in (k, v):
        flat = torch.zeros(len(counts) * PAGE_SLOTS, *x.shape[1:], dtype=x.dtype, device=x.device)
        paged.append(flat.index_copy_(0, rows, x).view(len(counts), PAGE_SLOTS, *x.shape[1:]))
    table = [x.int()[None].to(k.device) for x in (ids, valid)]
    return paged[0], paged[1], table[0], table[1]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_paged_attention(benchmark, shape, gpu, document) -> None:
    benchmark_case(benchmark, build(shape, Setting(gpu)), gpu, document)
