# SPDX-License-Identifier: Apache-2.0
"""Layers shared by the models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class History:
    """The last input frames of every temporal convolution of one stream; owned by the caller, never shared."""

    def __init__(self) -> None:
        self._frames: dict[nn.Module, Tensor] = {}

    def take(self, layer: nn.Module) -> Tensor | None:
        """What `layer` saw last [B, C, taps - 1, H, W], or None at the start of the stream."""
        return self._frames.get(layer)

    def keep(self, layer: nn.Module, frames: Tensor) -> None:
        """Remember the newest input frames [B, C, taps - 1, H, W] of `layer`."""
        self._frames[layer] = frames

    def clone(self) -> History:
        """A history that goes its own way from here; tensors are never written in place, so they can be shared."""
        other = History()
        other._frames = dict(self._frames)
        return other


class VideoConv(nn.Module):
    """Causal convolution over video [B, C, T, H, W]: `taps` frames (this one and those before), kernel x kernel pixels.

    `full_precision` leaves autocast: oneDNN's bf16 backward is up to 40 times slower than fp32 where 16 channels meet a
    wide layer.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        taps: int,
        kernel: int,
        init_std: float | None = None,
        full_precision: bool = False,
    ) -> None:
        super().__init__()
        self.taps, self.kernel, self.full_precision = taps, kernel, full_precision
        self.weight = nn.Parameter(torch.empty(outputs, inputs, taps, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        fan_in = inputs * taps * kernel * kernel
        nn.init.normal_(self.weight, std=fan_in**-0.5 / 3**0.5 if init_std is None else init_std)

    def forward(self, x: Tensor, history: History | None = None) -> Tensor:
        """Video [B, C, T, H, W] -> [B, outputs, T, H, W]; `history` holds the frames before a later chunk."""
        if self.full_precision:
            with torch.autocast(x.device.type, enabled=False):
                return self._convolve(x.to(self.weight.dtype), history)
        return self._convolve(x, history)

    def _convolve(self, x: Tensor, history: History | None) -> Tensor:
        batch, channels, frames, height, width = x.shape
        if self.taps > 1:
            before = history.take(self) if history is not None else None
            if before is None:
                before = x.new_zeros(batch, channels, self.taps - 1, height, width)
            x = torch.cat([before, x], dim=2)
            if history is not None:
                history.keep(self, x[:, :, frames:].clone() if frames < self.taps else x[:, :, -(self.taps - 1) :])
            x = torch.cat([x[:, :, tap : tap + frames] for tap in range(self.taps)], dim=1)
        flat = x.permute(0, 2, 1, 3, 4).reshape(batch * frames, -1, height, width)
        flat = flat.contiguous(memory_format=torch.channels_last)
        weight = self.weight.transpose(1, 2).flatten(1, 2)
        y = F.conv2d(flat, weight, self.bias, padding=self.kernel // 2)
        return y.view(batch, frames, -1, height, width).permute(0, 2, 1, 3, 4)


class ChannelNorm(nn.Module):
    """RMSNorm over the channels of [B, C, T, H, W] with a learned gain."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> the same shape."""
        scale = torch.rsqrt(x.float().square().mean(dim=1, keepdim=True) + self.eps).to(x.dtype)
        return x * scale * self.gain.to(x.dtype).view(1, -1, 1, 1, 1)


def fold_space(x: Tensor, factor: int) -> Tensor:
    """[B, C, T, H, W] -> [B, C factor^2, T, H/factor, W/factor]: pixel blocks become channels."""
    return _per_frame(x, F.pixel_unshuffle, factor)


def unfold_space(x: Tensor, factor: int) -> Tensor:
    """[B, C factor^2, T, H, W] -> [B, C, T, H factor, W factor], the inverse of `fold_space`."""
    return _per_frame(x, F.pixel_shuffle, factor)


def _per_frame(x: Tensor, rearrange, factor: int) -> Tensor:  # type: ignore[no-untyped-def]
    batch, _, frames = x.shape[:3]
    y = rearrange(x.transpose(1, 2).flatten(0, 1), factor)
    return y.unflatten(0, (batch, frames)).transpose(1, 2)
