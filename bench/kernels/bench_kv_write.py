# SPDX-License-Identifier: Apache-2.0
"""Norm and rotation of queries and keys, and the write into pages, for the tokens of one frame.

Shape: tokens x heads x head width, one session; q, k and v are views of one projection. The work is traffic: three
tensors read, three written. FLOP: 4 per element for a norm, 3 for a rotation, for q and k.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aapt_fast.ops import PAGE_SLOTS, kv_write
from bench.harness.cases import Case, Setting, benchmark_case, case_name

OP = "kv_write"
SHAPES = ((1196, 24, 128), (3600, 24, 128), (1560, 12, 128))
TINY = ((65, 2, 64),)


def build(shape: tuple[int, ...], setting: Setting) -> Case:
    """Every system has pages of its own, so that none can live on what another one wrote."""
    tokens, heads, width = shape
    elements = tokens * heads * width
    moved = 6 * elements * setting.dtype.itemsize + 2 * 4 * tokens * width // 2
    case = Case(case_name(OP, shape, setting.dtype), OP, 7.0 * 2 * elements, moved, setting.dtype)
    q, k, v = setting.randn(1, tokens, 3, heads, width).unbind(2)
    weights = setting.randn(2, width).unbind()
    angles = setting.randn32(tokens, width // 2)
    rotation = (angles.cos(), angles.sin())
    count = -(-tokens // PAGE_SLOTS)
    ids = torch.randperm(count + 3)[:count].int()[None].to(setting.device)
    shared = (q, k, v, *weights, *rotation)

    def own_pages() -> tuple[Tensor, Tensor]:
        return tuple(torch.zeros(count + 3, PAGE_SLOTS, heads, width, dtype=q.dtype, device=q.device) for _ in "kv")

    case.add_plain(setting, partial(_plain, *shared, *own_pages(), ids))
    case.add_composition(setting, partial(_write, *shared, *own_pages(), ids))
    case.add_kernels(setting, partial(_write, *shared, *own_pages(), ids))
    return case


def _write(*arguments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return kv_write(*arguments), arguments[7], arguments[8]


def _plain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    ids: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Without complex numbers, which torch.compile does not fuse."""
    full, rest = divmod(q.shape[1], PAGE_SLOTS)
    pages = ids[0].long()
    for tokens, pool in ((_rotated_norm(k, k_weight, cos, sin), k_pages), (v, v_pages)):
        if full:
            pool[pages[:full]] = tokens[0, : full * PAGE_SLOTS].unflatten(0, (full, PAGE_SLOTS))
        if rest:
            pool[pages[full], :rest] = tokens[0, full * PAGE_SLOTS :]
    return _rotated_norm(q, q_weight, cos, sin), k_pages, v_pages


def _rotated_norm(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [1, N, H, D], weight [D], cos and sin [N, D / 2]."""
    y = F.rms_norm(x.float(), weight.shape, weight.float(), 1e-6)
    even, odd, cos, sin = y[..., 0::2], y[..., 1::2], cos[:, None], sin[:, None]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).to(x.dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kv_write(benchmark, shape, gpu, document) -> None:
    benchmark_case(benchmark, build(shape, Setting(gpu)), gpu, document)
