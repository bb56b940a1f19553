# SPDX-License-Identifier: Apache-2.0
"""Patch embedding of noise, recycled frame and control; with and without making the noise.

Shape: control channels x latent height x latent width x model width, one session, 16 latent channels, patches 2 x 2.
2 * tokens * inputs * width FLOP with inputs = 4 * (32 + control channels).
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aapt_fast.ops import channel_concat, channel_concat_noise, philox_normal
from bench.harness.cases import Case, Setting, benchmark_case, case_name

OP = "channel_concat"
WITH_NOISE = "channel_concat_noise"
SHAPES = ((0, 52, 92, 3072), (64, 52, 92, 3072), (64, 90, 160, 3072))
TINY = ((4, 8, 12, 64),)
LATENT_CHANNELS, PATCH = 16, 2


def build(shape: tuple[int, ...], setting: Setting, op: str = OP) -> Case:
    """`op`: channel_concat, or channel_concat_noise, whose baselines make the noise with the philox_normal op."""
    controls, height, width, features = shape
    tokens = (height // PATCH) * (width // PATCH)
    inputs = (2 * LATENT_CHANNELS + controls) * PATCH**2
    moved = setting.dtype.itemsize * (tokens * (inputs + features) + (inputs + 1) * features)
    case = Case(case_name(op, shape, setting.dtype), op, 2.0 * tokens * inputs * features, moved, setting.dtype)
    noised, recycled = setting.randn(2, 1, LATENT_CHANNELS, height, width).unbind()
    control = setting.randn(1, controls, height, width) if controls else None
    weight, bias = setting.randn(features, inputs) / inputs**0.5, setting.randn(features)
    if op == WITH_NOISE:
        seed, step = (torch.tensor([number], device=setting.device) for number in (7, 3))
        case.add_plain(setting, partial(_plain_with_noise, recycled, control, weight, bias, seed, step))
        call = partial(channel_concat_noise, recycled, control, weight, bias, PATCH, seed, step)
    else:
        case.add_plain(setting, partial(_plain, noised, recycled, control, weight, bias))
        call = partial(channel_concat, noised, recycled, control, weight, bias, PATCH)
    case.add_composition(setting, call)
    case.add_kernels(setting, call)
    return case


def _plain(noised: Tensor, recycled: Tensor, control: Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
    """As most models write it: concatenate, then a convolution with stride 2."""
    sources = [noised, recycled] + ([control] if control is not None else [])
    kernel = weight.view(len(weight), -1, PATCH, PATCH)
    return F.conv2d(torch.cat(sources, 1), kernel, bias, stride=PATCH).flatten(2).transpose(1, 2).contiguous()


def _plain_with_noise(
    recycled: Tensor, control: Tensor | None, weight: Tensor, bias: Tensor, seed: Tensor, step: Tensor
) -> tuple[Tensor, Tensor]:
    noise = philox_normal(seed, step, tuple(recycled.shape[1:])).to(recycled.dtype)
    return _plain(noise, recycled, control, weight, bias), noise


@pytest.mark.parametrize("op", (OP, WITH_NOISE))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_channel_concat(benchmark, shape, op, gpu, document) -> None:
    benchmark_case(benchmark, build(shape, Setting(gpu), op), gpu, document)
