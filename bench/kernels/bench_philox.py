# SPDX-License-Identifier: Apache-2.0
"""Normal noise of one step from (seed, step).

Shape: channels x latent height x latent width, one session. The work is traffic: one float32 tensor written. FLOP: 40
integer and 15 floating point operations per element, roughly; its share of a ceiling means little at these sizes.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch

from aapt_fast.ops import philox_normal
from bench.harness.cases import Case, Setting, benchmark_case, case_name

OP = "philox_normal"
SHAPES = ((16, 52, 92), (16, 90, 160))
TINY = ((3, 5, 7),)


def build(shape: tuple[int, ...], setting: Setting) -> Case:
    """torch.randn makes other numbers, which depend on what ran before; it shows what a stateful generator costs."""
    count = shape[0] * shape[1] * shape[2]
    case = Case(case_name(OP, shape, torch.float32), OP, 15.0 * count, 4 * count, torch.float32)
    seed, step = (torch.tensor([number], device=setting.device) for number in (7, 3))
    call = partial(philox_normal, seed, step, shape)
    case.add_composition(setting, call)
    case.systems["torch.randn (other numbers)"] = partial(torch.randn, 1, *shape, device=setting.device)
    case.other_numbers.add("torch.randn (other numbers)")
    case.add_kernels(setting, call)
    return case


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_philox_normal(benchmark, shape, gpu, document) -> None:
    benchmark_case(benchmark, build(shape, Setting(gpu, torch.float32)), gpu, document)
