# SPDX-License-Identifier: Apache-2.0
"""The memory of an encoder for a video of one picture, computed with the ops `ring_conv3d` and `norm_silu`.

Before the first frame of a video there are zeros, or copies of that frame. So a causal convolution of it is one in
space only: with the last of its time taps, or with the sum of them. Nothing has to be remembered.

The stride of two needs no kernel of its own. With zeros below and to the right, output (y, x) of a 3x3 convolution
with stride two is output (2 y + 1, 2 x + 1) of the one that keeps the size: both see rows 2 y to 2 y + 2, and beyond
the last row there is a zero in both. How much more is computed, csrc/ring_conv3d/README.md says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from aapt_fast.models.vae.feature_cache import FeatureCache
from aapt_fast.models.vae.memory import EncoderMemory
from aapt_fast.models.vae.ring_cache import kernels_run
from aapt_fast.ops._checks import records_gradients
from aapt_fast.ops.norm_silu import norm_silu
from aapt_fast.ops.ring_conv3d import pack_weight, ring_conv3d

CHANNEL_STEP = 16
"""Kernels take multiples of so many channels."""


def encoder_memory(vae: nn.Module, video: Tensor) -> EncoderMemory:
    """The memory in which `vae` encodes video [B, 3, T, H, W].

    It is a `PictureMemory` if T is 1 and the kernels run, without autocast and gradients.
    """
    weight = next(vae.parameters())
    torch_only = records_gradients(video, *vae.parameters()) or torch.is_autocast_enabled(weight.device.type)
    if video.shape[2] == 1 and not torch_only and kernels_run(weight.device, weight.dtype):
        return PictureMemory()
    return FeatureCache()


class PictureMemory:
    """An `EncoderMemory` for the first frame of a video; frames are tensors [B, C, 1, H, W] in `channels_last_3d`.

    Weights are packed for the call: those of one layer at a time are there twice.
    """

    def conv(self, x: Tensor, conv: Any, residual: Tensor | None = None) -> Tensor:
        """A causal convolution of x [B, C, 1, H, W], plus `residual` [B, O, 1, H, W]."""
        return _convolve(_pixels(x), conv, residual)

    def norm_conv(
        self, x: Tensor, norm: Any, conv: Any, residual: Tensor | None = None, last_use: bool = False
    ) -> Tensor:
        """Norm, SiLU and a causal convolution of x [B, C, 1, H, W], plus `residual` [B, O, 1, H, W]."""
        pixels = _pixels(x)
        normed = torch.empty_like(pixels)
        gamma, beta, groups, eps = norm.arguments()
        norm_silu(pixels, gamma, beta, groups, eps, normed, None)
        return _convolve(normed, conv, residual)

    def apply(self, function: Callable[..., Tensor], x: Tensor, *others: Tensor) -> Tensor:
        """`function` of frames [B, C, 1, H, W]."""
        return function(x, *others)

    def halve(self, x: Tensor, resample: nn.Sequential) -> Tensor:
        """[B, C, 1, H, W] -> [B, O, 1, H / 2, W / 2] by `resample`."""
        return _odd_pixels(_convolve(_pixels(x), resample[1]))

    def halve_time(self, x: Tensor, time_conv: Any) -> Tensor:
        """The frame x [B, C, 1, H, W]: it has no other one to be joined with."""
        return x

    def halve_all(self, x: Tensor, conv: Any) -> Tensor:
        """[B, C, 1, H, W] -> [B, O, 1, H / 2, W / 2] by a `StridedConv`."""
        return _odd_pixels(_convolve(_pixels(x), conv))


def weight_for_first_frame(conv: Any) -> Tensor:
    """The weight [O, C, 1, kh, kw] or [O, C, kh, kw] that a convolution has for the first frame of a video."""
    if isinstance(conv, nn.Conv2d):
        return conv.weight
    return conv.weight.sum(2, keepdim=True) if conv.repeats_first else conv.weight[:, :, -1:]


def _pixels(x: Tensor) -> Tensor:
    """[B, C, 1, H, W] -> [B, 1, H, W, C], contiguous."""
    return x.permute(0, 2, 3, 4, 1).contiguous()


def _odd_pixels(x: Tensor) -> Tensor:
    """[B, C, 1, H, W] -> [B, C, 1, H / 2, W / 2]: every second pixel, from (1, 1) on."""
    return x[..., 1::2, 1::2].contiguous(memory_format=torch.channels_last_3d)


def _convolve(pixels: Tensor, conv: Any, residual: Tensor | None = None) -> Tensor:
    """`conv` of pixels [B, 1, H, W, C], of the same size in space, plus `residual` [B, O, 1, H, W]."""
    missing, channels = -pixels.shape[-1] % CHANNEL_STEP, None
    if missing:  # colours
        pixels = nn.functional.pad(pixels, (0, missing))
        channels = pixels.shape[-1]
    weight = pack_weight(weight_for_first_frame(conv), channels=channels)
    out = pixels.new_empty(*pixels.shape[:4], conv.out_channels)
    added = None if residual is None else _pixels(residual)
    ring_conv3d(pixels, None, weight, conv.bias, added, out, None, 1)
    return out.permute(0, 4, 1, 2, 3)
