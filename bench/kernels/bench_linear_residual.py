# SPDX-License-Identifier: Apache-2.0
"""A linear layer, the gated residual sum and the norm after it: does a sum in the epilogue of the product win?

Shape: tokens x width x depth, one session. All systems return the new residual stream and its modulated norm. FLOP:
those of the product; traffic: inputs, weight and x read, both results written.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch.nn.functional as F
from torch import Tensor

from aapt_fast.ops import gate_residual_norm, linear_residual
from bench.harness.cases import Case, Setting, benchmark_case, case_name

OP = "linear_residual"
NORM = "gate_residual_norm/portable"
SHAPES = ((1196, 3072, 3072), (1196, 3072, 12288), (3600, 3072, 3072), (3600, 3072, 12288))
TINY = ((65, 128, 64),)
Results = tuple[Tensor, Tensor]


def build(shape: tuple[int, ...], setting: Setting) -> Case:
    """As in a block of the generator: gate, scale and shift [1, 1, d]."""
    tokens, width, depth = shape
    moved = (tokens * depth + width * depth + 3 * tokens * width) * setting.dtype.itemsize
    case = Case(case_name(OP, shape, setting.dtype), OP, 2.0 * tokens * width * depth, moved, setting.dtype)
    x, inputs = setting.randn(1, tokens, width), setting.randn(1, tokens, depth)
    weight, bias = setting.randn(width, depth) * depth**-0.5, setting.randn(width)
    gate, scale, shift = setting.randn(3, 1, 1, width).unbind()

    def norm_adds() -> Results:
        return gate_residual_norm(x, F.linear(inputs, weight, bias), gate, scale, shift)

    def epilogue_adds() -> Results:
        residual = linear_residual(x, inputs, weight, bias, gate)
        return gate_residual_norm(residual, None, None, scale, shift)

    case.add_composition(setting, norm_adds)
    case.systems[f"torch's linear layer, then {NORM}"] = partial(_with, setting, (NORM,), norm_adds)
    case.add_kernels(setting, epilogue_adds)
    for kernel in case.ours:  # a norm that reads the sum and writes no second copy of it
        case.systems[kernel] = partial(_with, setting, (kernel, NORM), epilogue_adds)
    return case


def _with(setting: Setting, kernels: tuple[str, ...], call: Callable[[], Results]) -> Results:
    with setting.kernels(*kernels):
        return call()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_residual(benchmark, shape, gpu, document) -> None:
    benchmark_case(benchmark, build(shape, Setting(gpu)), gpu, document)
