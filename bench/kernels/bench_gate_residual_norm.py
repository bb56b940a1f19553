# SPDX-License-Identifier: Apache-2.0
"""Gate, residual, RMSNorm and modulation between two sub-layers.

Shape: tokens x width, one session. The work is traffic: two tensors read, two written. FLOP: 8 per element.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch.nn.functional as F
from torch import Tensor

from aapt_fast.ops import gate_residual_norm
from bench.harness.cases import Case, Setting, benchmark_case, case_name

OP = "gate_residual_norm"
SHAPES = ((1196, 3072), (3600, 3072), (1560, 1536))
TINY = ((65, 128),)


def build(shape: tuple[int, ...], setting: Setting) -> Case:
    """As in a block of the generator: gate, scale and shift [1, 1, d]."""
    tokens, width = shape
    moved = (4 * tokens + 3) * width * setting.dtype.itemsize
    case = Case(case_name(OP, shape, setting.dtype), OP, 8.0 * tokens * width, moved, setting.dtype)
    x, y = setting.randn(2, 1, tokens, width).unbind()
    arguments = (x, y, *setting.randn(3, 1, 1, width).unbind())
    case.add_plain(setting, partial(_plain, *arguments))
    case.add_composition(setting, partial(gate_residual_norm, *arguments))
    case.add_kernels(setting, partial(gate_residual_norm, *arguments))
    return case


def _plain(x: Tensor, y: Tensor, gate: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """In float32 inside, as the op; torch.compile makes one kernel of it."""
    residual = x.float() + gate.float() * y.float()
    normed = F.rms_norm(residual, x.shape[-1:], None, 1e-6) * (1 + scale.float()) + shift.float()
    return residual.to(x.dtype), normed.to(x.dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gate_residual_norm(benchmark, shape, gpu, document) -> None:
    benchmark_case(benchmark, build(shape, Setting(gpu)), gpu, document)
