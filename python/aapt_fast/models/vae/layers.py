# SPDX-License-Identifier: Apache-2.0
"""Layers that the video VAEs share: the causal convolution; chains and residual blocks; space and time to channels."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aapt_fast.models.vae.feature_cache import FeatureCache
from aapt_fast.models.vae.memory import Frames, LayerMemory
from aapt_fast.ops.causal_conv3d import causal_conv3d, tap_major


class CausalConv3d(nn.Conv3d):
    """`ops.causal_conv3d` with parameters `weight` [O, C, kt, kh, kw] and `bias` [O].

    The weight is stored in the layout of `tap_major`, on GPUs in `torch.channels_last_3d`, so that no call lays it out
    anew. Its shape, and so a state dict, is the usual one, but `weight.is_contiguous()` is False: safetensors asks for
    `.contiguous()` before saving.

    `cache_key` names the layer in a `FeatureCache`; the model that owns the layer sets it with `name_cached_layers`.
    Before the first frame of a video there are zeros or, with `repeats_first`, copies of that frame.
    """

    weight: nn.Parameter

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int, int],
        repeats_first: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size)
        self.weight = nn.Parameter(tap_major(self.weight.detach()))
        self.cache_key, self.repeats_first = "", repeats_first
        self.past = self.kernel_size[0] - 1  # frames before the present one that an output depends on

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CausalConv3d:
        """Move and cast, for `to`, `bfloat16` and others, and lay the weight out as the device wants it."""
        super()._apply(fn, recurse)
        weight = self.weight.data
        if weight.is_cuda:
            self.weight.data = weight.contiguous(memory_format=torch.channels_last_3d)
        elif not weight.permute(0, 3, 4, 2, 1).is_contiguous():
            self.weight.data = tap_major(weight)
        return self

    def forward(self, x: Tensor, cache: FeatureCache | None = None) -> Tensor:
        """The next chunk [B, C, T, H, W] of the stream that `cache` belongs to, or a whole clip -> [B, O, T, H, W]."""
        history = cache.get(self.cache_key) if cache is not None else None
        if history is None and self.past and self.repeats_first:
            history = x[:, :, :1].expand(-1, -1, self.past, -1, -1)
            if cache is not None:
                cache.append(self.cache_key, history, self.past)
        y = causal_conv3d(x, self.weight, self.bias, history)
        if self.past and cache is not None:
            cache.append(self.cache_key, x, self.past)
        return y


class Chain(nn.ModuleList):
    """Layers one after the other, which all take the memory of their stream."""

    def forward(self, x: Frames, memory: LayerMemory | None) -> Frames:
        """The next chunk of the stream that `memory` belongs to, through all layers."""
        for layer in self:
            x = layer(x, memory)
        return x


def residual_block(
    memory: LayerMemory,
    x: Frames,
    first: tuple[nn.Module, CausalConv3d],
    second: tuple[nn.Module, CausalConv3d],
    shortcut: CausalConv3d | None,
) -> Frames:
    """Norm, SiLU and convolution, twice, around x or its `shortcut`, a convolution that changes the width."""
    y = memory.norm_conv(x, *first)
    added = x if shortcut is None else memory.conv(x, shortcut)
    return memory.norm_conv(y, *second, residual=added, last_use=True)


def attend_in_frames(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Single-head attention among the pixels of each frame: q, k, v [N, H W, C] -> the same shape."""
    return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]


def name_cached_layers(model: nn.Module) -> None:
    """Give every `CausalConv3d` in `model` its qualified module name as `cache_key`."""
    for name, layer in model.named_modules():
        if isinstance(layer, CausalConv3d):
            layer.cache_key = name


def fold_space(x: Tensor, factor: int) -> Tensor:
    """[B, C, T, H, W] -> [B, C factor^2, T, H/factor, W/factor]: pixel blocks become channels."""
    return _per_frame(x, F.pixel_unshuffle, factor)


def unfold_space(x: Tensor, factor: int) -> Tensor:
    """[B, C factor^2, T, H, W] -> [B, C, T, H factor, W factor], the inverse of `fold_space`."""
    return _per_frame(x, F.pixel_shuffle, factor)


def fold_time(video: Tensor, factor: int) -> Tensor:
    """[B, C, factor n, H, W] -> [B, factor C, n, H, W], time major."""
    batch, channels, frames, height, width = video.shape
    grouped = video.view(batch, channels, frames // factor, factor, height, width)
    return grouped.permute(0, 3, 1, 2, 4, 5).reshape(batch, factor * channels, frames // factor, height, width)


def unfold_time(video: Tensor, factor: int) -> Tensor:
    """[B, factor C, n, H, W] -> [B, C, factor n, H, W], the inverse of `fold_time`."""
    batch, channels, frames, height, width = video.shape
    grouped = video.view(batch, factor, channels // factor, frames, height, width)
    return grouped.permute(0, 2, 3, 1, 4, 5).reshape(batch, channels // factor, factor * frames, height, width)


def _per_frame(x: Tensor, rearrange: Callable[[Tensor, int], Tensor], factor: int) -> Tensor:
    batch, _, frames = x.shape[:3]
    y = rearrange(x.transpose(1, 2).flatten(0, 1), factor)
    return y.unflatten(0, (batch, frames)).transpose(1, 2)
