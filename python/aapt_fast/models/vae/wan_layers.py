# SPDX-License-Identifier: Apache-2.0
"""Layers of the Wan video VAE, with the parameter names of the published checkpoints.

Video is [B, C, T, H, W] in the memory format `torch.channels_last_3d`: in memory it is [B, T, H, W, C], so frames
[B * T, C, H, W] and tokens [B * T, H * W, C] are views of it. Every layer takes the memory of its stream.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aapt_fast.models.vae.layers import CausalConv3d, attend_in_frames, residual_block
from aapt_fast.models.vae.memory import DecoderMemory, EncoderMemory, Frames, LayerMemory
from aapt_fast.ops._checks import records_gradients
from aapt_fast.ops.ring_conv3d import convolve_phases, pack_weight

HALVES = (torch.bfloat16, torch.float16)
EPS = 1e-12
"""The smallest norm that is divided by."""


class RMSNorm(nn.Module):
    """x / ||x|| * sqrt(C) * gamma, the norm taken over channels, in float32 or wider.

    In half precision the result is rounded after each of the three operations, as diffusers does. Differences compound
    over this depth into a visibly different video. `broadcast_dims` is the number of trailing dimensions of size one
    that the published `gamma` has.
    """

    def __init__(self, channels: int, broadcast_dims: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * broadcast_dims))

    def arguments(self) -> tuple[Tensor, Tensor | None, int, float]:
        """gamma, beta, groups and eps of `ops.norm_silu`."""
        return self.gamma.view(-1), None, 0, EPS

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> the same shape and dtype."""
        if x.dtype in HALVES:
            return self._in_halves(x)
        wide = x if x.dtype == torch.float64 else x.float()
        gain = self.gamma.to(wide.dtype).view(-1, 1, 1, 1) * x.shape[1] ** 0.5
        norm = torch.linalg.vector_norm(wide, dim=1, keepdim=True).clamp_min(EPS)
        return (wide * gain).div_(norm).to(x.dtype)

    def silu_into(self, x: Tensor, out: Tensor) -> None:
        """Write SiLU of the norm of x [B, C, T, H, W] into `out`, of the same shape, in two passes; rounded once each.

        Both are in `torch.channels_last_3d`. Without gradients.
        """
        pixels = x.permute(0, 2, 3, 4, 1)
        normed = F.rms_norm(pixels.flatten(0, 3), pixels.shape[4:], self.gamma.view(-1), EPS**2)
        torch.ops.aten.silu.out(normed.view(pixels.shape), out=out.permute(0, 2, 3, 4, 1))

    def _in_halves(self, x: Tensor) -> Tensor:
        """`forward` for [B, C, T, H, W] in half precision; without gradients it makes no copy of x in float32."""
        scale, gamma = x.shape[1] ** 0.5, self.gamma.view(-1, 1, 1, 1)
        if records_gradients(x, gamma):
            return F.normalize(x.float(), dim=1).to(x.dtype) * scale * gamma
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32).clamp_min_(EPS)
        return torch.div(x, norm, out=torch.empty_like(x)).mul_(scale).mul_(gamma)


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice, around a shortcut. Numbers are places in the published sequence of layers."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.residual = nn.ModuleDict(
            {
                "0": RMSNorm(in_channels),
                "2": CausalConv3d(in_channels, out_channels, 3),
                "3": RMSNorm(out_channels),
                "6": CausalConv3d(out_channels, out_channels, 3),
            }
        )
        self.shortcut = CausalConv3d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Frames, memory: LayerMemory) -> Frames:
        """[B, C, T, H, W] -> [B, O, T, H, W]."""
        norm1, conv1, norm2, conv2 = self.residual.values()
        return residual_block(memory, x, (norm1, conv1), (norm2, conv2), self.shortcut)


class FrameAttention(nn.Module):
    """Single-head attention among the pixels of one frame, with a residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = RMSNorm(channels, broadcast_dims=2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Frames, memory: LayerMemory) -> Frames:
        """[B, C, T, H, W] -> the same shape; frames do not see each other."""
        return memory.apply(self.attend, x)

    def attend(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> the same shape."""
        batch, channels, length, height, width = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 4, 1).reshape(batch * length, height * width, channels)
        qkv = F.linear(tokens, self.to_qkv.weight.flatten(1), self.to_qkv.bias)
        mixed = attend_in_frames(*qkv.chunk(3, dim=-1))
        mixed = F.linear(mixed, self.proj.weight.flatten(1), self.proj.bias)
        return x + mixed.view(batch, length, height, width, channels).permute(0, 4, 1, 2, 3)


class Enlarge(nn.Sequential):
    """Nearest upsampling of every frame by two, then a 3x3 convolution; numbers are places in the published layers."""

    def __init__(self, channels: int, out_channels: int) -> None:
        enlarge = nn.Upsample(scale_factor=2, mode="nearest-exact")
        super().__init__(enlarge, nn.Conv2d(channels, out_channels, 3, padding=1))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Enlarge:
        """Move and cast, for `to`, `bfloat16` and others, and lay the weight out as GPUs want it."""
        super()._apply(fn, recurse)
        weight = self[1].weight
        if weight.is_cuda:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, O, T, 2 H, 2 W]."""
        frames = x.transpose(1, 2).flatten(0, 1)
        if frames.is_cpu and frames.dtype == torch.float32:
            y = upsample_and_convolve(frames, self[1].weight, self[1].bias)
        else:
            y = super().forward(frames)
        return y.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


class Upsample(nn.Module):
    """Twice the height and width; with `temporal` also two frames from every one but the first."""

    def __init__(self, channels: int, temporal: bool, out_channels: int) -> None:
        super().__init__()
        self.resample = Enlarge(channels, out_channels)
        self.time_conv = CausalConv3d(channels, 2 * channels, (3, 1, 1)) if temporal else None

    def forward(self, x: Frames, memory: DecoderMemory) -> Frames:
        """[B, C, T, H, W] -> [B, O, T or 2 T, 2 H, 2 W]."""
        if self.time_conv is not None:
            x = memory.double_time(x, self.time_conv)
        return memory.enlarge(x, self.resample)


def upsample_and_convolve(frames: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Nearest upsampling by two, then a 3x3 convolution with zero padding, without making the large image.

    frames [N, C, h, w], weight [O, C, 3, 3], bias [O] -> [N, O, 2 h, 2 w]. Four 2x2 kernels with summed taps, 16
    multiplications instead of 36, as one convolution: mode "upsample" of `ops/ring_conv3d.py`.
    """
    return convolve_phases(frames.permute(0, 2, 3, 1), pack_weight(weight, "upsample"), bias).permute(0, 3, 1, 2)


class Halve(nn.Sequential):
    """Zeros below and to the right of every frame, then a 3x3 convolution with stride two."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, C, T, H / 2, W / 2]."""
        frames = super().forward(x.transpose(1, 2).flatten(0, 1))
        return frames.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


class Downsample(nn.Module):
    """Half the height and width; with `temporal` also one frame from every two but the first."""

    def __init__(self, channels: int, temporal: bool) -> None:
        super().__init__()
        self.resample = Halve(channels)
        self.time_conv = CausalConv3d(channels, channels, (3, 1, 1)) if temporal else None

    def forward(self, x: Tensor, memory: EncoderMemory) -> Tensor:
        """[B, C, T, H, W] -> [B, C, T or T / 2, H / 2, W / 2]; the first frame of a stream stays as it is."""
        y = memory.halve(x, self.resample)
        return y if self.time_conv is None else memory.halve_time(y, self.time_conv)
