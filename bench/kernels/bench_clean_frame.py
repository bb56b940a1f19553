# SPDX-License-Identifier: Apache-2.0
"""The end of an evaluation: tokens of velocity and noised frames to clean frames.

Shape: channels x latent height x latent width, one session, one frame, patches of 2. The work is traffic: tokens and
noised frames read, clean frames written. FLOP: 2 per element.
"""

from __future__ import annotations

from functools import partial

import pytest
from torch import Tensor
from torch.nn.functional import pixel_shuffle

from aapt_fast.ops import clean_frame
from bench.harness.cases import Case, Setting, benchmark_case, case_name

OP = "clean_frame"
PATCH = 2
SHAPES = ((16, 52, 92), (16, 90, 160), (48, 44, 80))
TINY = ((8, 6, 10),)


def build(shape: tuple[int, ...], setting: Setting) -> Case:
    """As in a generator whose last linear layer gives the velocity."""
    channels, height, width = shape
    count = channels * height * width
    moved = count * (setting.dtype.itemsize + 2 * 4)
    case = Case(case_name(OP, shape, setting.dtype), OP, 2.0 * count, moved, setting.dtype)
    tokens = setting.randn(1, height // PATCH * (width // PATCH), channels * PATCH**2)
    arguments = (tokens, setting.randn32(1, channels, 1, height, width), setting.randn32(1).abs(), PATCH)
    case.add_plain(setting, partial(_plain, *arguments))
    case.add_composition(setting, partial(clean_frame, *arguments))
    case.add_kernels(setting, partial(clean_frame, *arguments))
    return case


def _plain(tokens: Tensor, noised: Tensor, t: Tensor, patch: int) -> Tensor:
    """torch.compile makes one kernel of it."""
    height, width = noised.shape[-2:]
    patches = tokens.view(len(noised), height // patch, width // patch, -1).permute(0, 3, 1, 2)
    velocity = pixel_shuffle(patches, patch).float()[:, :, None]
    return noised - t.view(-1, 1, 1, 1, 1) * velocity


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_clean_frame(benchmark, shape, gpu, document) -> None:
    benchmark_case(benchmark, build(shape, Setting(gpu)), gpu, document)
