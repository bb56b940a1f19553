# SPDX-License-Identifier: Apache-2.0
"""Bodies of ops for GPUs on the fake GPU: what they launch, and that they neither copy from the host nor wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from aapt_fast import ops
from aapt_fast.ops import registry
from aapt_fast.ops.calls import observe_ops
from aapt_fast.ops.dense_attention import dense_attention, table_attention
from aapt_fast.testing.fake_cuda import FAKE_GPU
from aapt_fast.testing.fake_gpu import Counts, FakeGPU

MIB = 2**20
TOKENS, HEADS, WIDTH = 1196, 24, 128  # a frame of aapt-8b
PAGES = 32 * 19  # text left out: 31 frames and its own


@contextmanager
def without_the_host(gpu: FakeGPU) -> Iterator[Counts]:
    with torch.inference_mode(), gpu.counting() as counts:
        yield counts
    assert not counts.uploads and not counts.syncs


def zeros(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.zeros(*shape, dtype=dtype, device=FAKE_GPU)


ATTENTION = [
    (torch.bfloat16, 128, 24, False, "_flash_attention_forward", 9 + 2 * 228),
    (torch.float16, 56, 4, False, "_flash_attention_forward", 9 + 2 * 17),
    (torch.bfloat16, 128, 24, True, "_flash_attention_forward", 9 + 228 + 3 * 243),
    (torch.float32, 128, 24, False, "_efficient_attention_forward", 34 + 2 * 456),
]


@pytest.mark.parametrize(("dtype", "width", "heads", "biased", "kernel", "mib"), ATTENTION, ids=str)
def test_paged_attention(dtype, width, heads, biased, kernel, mib, gpu):
    """A step of aapt-8b and others: one fused kernel, and memory for the keys and values that it reads."""
    q, pages = zeros(1, TOKENS, heads, width, dtype=dtype), zeros(PAGES, 64, heads, width, dtype=dtype)
    table = zeros(1, PAGES, dtype=torch.int32)
    bias = zeros(1, PAGES, dtype=torch.float32) if biased else None
    before = gpu.live_bytes
    with without_the_host(gpu) as counts, observe_ops() as calls:
        out, lse = ops.paged_attention(q, pages, pages, table, table, None, bias)
    assert calls.what_ran() == {"paged_attention": registry.FUSED}
    assert out.shape == q.shape and out.dtype == dtype and out.device == FAKE_GPU
    assert lse.shape == (1, heads, TOKENS) and lse.dtype == torch.float32
    assert counts.operators[kernel] == 1 and counts.operators["bmm"] == 0
    assert counts.peak_bytes - before < (mib + 40) * MIB  # index, bias, log-sum-exp and copies of out: the 40


def test_paged_attention_under_autocast_runs_as_without(gpu):
    q, pages, table = zeros(2, 5, 4, 64), zeros(3, 64, 2, 64), zeros(2, 3, dtype=torch.int32)
    counted = []
    for enabled in (False, True):
        with without_the_host(gpu) as counts, torch.autocast("cuda", torch.float16, enabled=enabled):
            out, _ = ops.paged_attention(q, pages, pages, table, table)
        assert out.dtype == torch.bfloat16
        counted.append(counts.operators)
    assert counted[0] == counted[1]


@pytest.mark.parametrize("tokens", [torch.bfloat16, torch.float32], ids=str)
def test_gate_residual_norm_widens_only_the_residual(tokens, gpu):
    x, y, modulation = zeros(1, TOKENS, 3072, dtype=tokens), zeros(1, TOKENS, 3072), zeros(1, 1, 3072)
    call = torch.ops.aapt.gate_residual_norm.default
    with without_the_host(gpu) as counts:
        residual, normed = call(x, y.to(tokens) if tokens == torch.bfloat16 else y, modulation, modulation, None, 1e-6)
    assert residual.dtype == normed.dtype == tokens
    assert counts.operators["_to_copy"] <= (4 if tokens == torch.bfloat16 else 1)  # in and out; the scale


def test_the_other_ops(gpu):
    q, pages = zeros(1, TOKENS, HEADS, WIDTH), zeros(19, 64, HEADS, WIDTH)
    angles = zeros(TOKENS, WIDTH // 2, dtype=torch.float32)
    with without_the_host(gpu):
        ids = torch.arange(19, dtype=torch.int32, device=FAKE_GPU)[None]
        ops.kv_write(q, q, q, zeros(WIDTH), zeros(WIDTH), angles, angles, pages, pages, ids)
        frame = zeros(1, 16, 52, 92)
        ops.channel_concat(frame, frame, None, zeros(3072, 128), zeros(3072), 2)
        clean = zeros(1, 16, 1, 52, 92, dtype=torch.float32)
        ops.clean_frame(zeros(1, TOKENS, 64), clean, zeros(1, dtype=torch.float32), 2)
        clip = zeros(1, 96, 4, 52, 92).contiguous(memory_format=torch.channels_last_3d)
        ops.causal_conv3d(clip, zeros(96, 96, 3, 3, 3), zeros(96), zeros(1, 96, 2, 52, 92))


def test_dense_attention(gpu):
    q = zeros(2, TOKENS, HEADS, WIDTH)
    with without_the_host(gpu) as counts:
        dense_attention(q, q, q)
    assert counts.operators == {"scaled_dot_product_attention": 1}
    with without_the_host(gpu) as counts:
        _, lse = dense_attention(q, q, q, with_lse=True)
        table, pages = zeros(2, 19, dtype=torch.int32), zeros(40, 64, HEADS, WIDTH)
        table_attention(q, pages, pages, table, table[:, 0], with_lse=True)
    assert lse is not None and lse.shape == (2, HEADS, TOKENS)
    assert counts.operators["_flash_attention_forward"] == 2


def test_philox_normal(gpu):
    seeds = torch.zeros(2, dtype=torch.int64, device=FAKE_GPU)
    with without_the_host(gpu):
        assert ops.philox_normal(seeds, seeds, (16, 52, 92)).device == FAKE_GPU
