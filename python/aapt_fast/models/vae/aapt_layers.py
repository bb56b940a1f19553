# SPDX-License-Identifier: Apache-2.0
"""Layers of the video VAE of AAPT, with the parameter names of the open VAE of the same family (SeedVR).

Video is [B, C, T, H, W] in the memory format `torch.channels_last_3d`. Before the first frame of a video, every causal
layer sees copies of that frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aapt_fast.models.vae.feature_cache import FeatureCache
from aapt_fast.models.vae.layers import CausalConv3d, attend_in_frames, residual_block
from aapt_fast.models.vae.memory import DecoderMemory, EncoderMemory, Frames, LayerMemory

EPS = 1e-6


def convolution(inputs: int, outputs: int, kernel: int | tuple[int, int, int] = 3) -> CausalConv3d:
    """A causal convolution that sees copies of the first frame before it."""
    return CausalConv3d(inputs, outputs, kernel, repeats_first=True)


class FrameNorm(nn.GroupNorm):
    """GroupNorm of every frame for itself, so that the norm of a frame does not depend on later ones."""

    def __init__(self, groups: int, channels: int) -> None:
        super().__init__(groups, channels, EPS)

    def arguments(self) -> tuple[Tensor, Tensor | None, int, float]:
        """gamma, beta, groups and eps of `ops.norm_silu`."""
        return self.weight, self.bias, self.num_groups, self.eps

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> the same shape and memory format."""
        frames = x.transpose(1, 2).flatten(0, 1)
        return super().forward(frames).unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)

    def silu_into(self, x: Tensor, out: Tensor) -> None:
        """Write SiLU of the norm of x [B, C, T, H, W] into `out`, of the same shape, with the colours last in memory.

        Torch's own GroupNorm on GPUs brings frames into another memory format and back. This one reads x three times
        and makes no copy in float32, in which it computes. Without gradients.
        """
        batch, channels, length, height, width = x.shape
        pixels = x.permute(0, 2, 3, 4, 1).reshape(batch * length, height * width, self.num_groups, -1)
        wide = torch.promote_types(x.dtype, torch.float32)
        mean = pixels.mean((1, 3), keepdim=True, dtype=wide)
        norm = torch.linalg.vector_norm(pixels, dim=(1, 3), keepdim=True, dtype=wide)
        variance = norm.square_().div_(pixels[0, :, 0].numel()).addcmul_(mean, mean, value=-1)
        scale = variance.clamp_min_(0).add_(self.eps).rsqrt_() * self.weight.view(self.num_groups, -1)
        shift = torch.addcmul(self.bias.to(wide).view(self.num_groups, -1), mean, scale, value=-1)
        normed = torch.addcmul(shift, pixels, scale, out=torch.empty_like(pixels))
        torch.ops.aten.silu.out(normed.view(batch, length, height, width, channels), out=out.permute(0, 2, 3, 4, 1))


class ResidualBlock(nn.Module):
    """Norm, SiLU and convolution, twice, around x or, where the width changes, a 1x1x1 convolution of it."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = FrameNorm(groups, in_channels), convolution(in_channels, out_channels)
        self.norm2, self.conv2 = FrameNorm(groups, out_channels), convolution(out_channels, out_channels)
        self.conv_shortcut = convolution(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Frames, memory: LayerMemory) -> Frames:
        """[B, C, T, H, W] -> [B, O, T, H, W]."""
        return residual_block(memory, x, (self.norm1, self.conv1), (self.norm2, self.conv2), self.conv_shortcut)


class FrameAttention(nn.Module):
    """Single-head attention among the pixels of one frame, with a residual connection."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = FrameNorm(groups, channels)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Frames, memory: LayerMemory) -> Frames:
        """[B, C, T, H, W] -> the same shape; frames do not see each other."""
        return memory.apply(self.attend, x)

    def attend(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> the same shape."""
        batch, channels, length, height, width = x.shape
        tokens = self.group_norm(x).permute(0, 2, 3, 4, 1).reshape(batch * length, height * width, channels)
        mixed = self.to_out[0](attend_in_frames(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)))
        return x + mixed.view(batch, length, height, width, channels).permute(0, 4, 1, 2, 3)


class MidBlock(nn.Module):
    """Layers at the lowest resolution: a residual block, attention inside each frame, another block."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(channels, channels, groups) for _ in range(2))
        self.attentions = nn.ModuleList([FrameAttention(channels, groups)])

    def forward(self, x: Frames, memory: LayerMemory) -> Frames:
        """[B, C, T, H, W] -> the same shape."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x, memory), memory), memory)


class Upsample(nn.Module):
    """Twice the height and width; with `temporal` also two frames from every one but the first.

    A 1x1x1 convolution makes the pixels of each block of rows, columns and frames as channels, in this order.
    """

    def __init__(self, channels: int, temporal: bool) -> None:
        super().__init__()
        self.time = 2 if temporal else 1
        self.upscale_conv = convolution(channels, 4 * self.time * channels, 1)
        self.conv = convolution(channels, channels)

    def forward(self, x: Frames, memory: DecoderMemory) -> Frames:
        """[B, C, T, H, W] -> [B, C, T or 2 T, 2 H, 2 W]."""
        return memory.shuffle_up(x, self.upscale_conv, self.conv, self.time)


class UpBlock(nn.Module):
    """Residual blocks of one level of the decoder and, unless it is the last one, the step to the next."""

    def __init__(self, widths: Sequence[int], blocks: int, groups: int, up: bool, temporal: bool) -> None:
        super().__init__()
        inputs, outputs = widths
        self.resnets = nn.ModuleList(ResidualBlock(outputs if i else inputs, outputs, groups) for i in range(blocks))
        self.upsamplers = nn.ModuleList([Upsample(outputs, temporal)] if up else [])

    def forward(self, x: Frames, memory: DecoderMemory) -> Frames:
        """[B, C, T, H, W] -> [B, O, T or 2 T, 2 H, 2 W], or [B, O, T, H, W] at the last level."""
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x, memory)
        return x


class StridedConv(CausalConv3d):
    """A causal convolution with stride two in space, and with `temporal` in time: of the first frame one is left.

    Zeros are below and to the right of the picture only.
    """

    def __init__(self, channels: int, temporal: bool) -> None:
        super().__init__(channels, channels, (3 if temporal else 1, 3, 3), repeats_first=True)

    def forward(self, x: Tensor, cache: FeatureCache) -> Tensor:  # type: ignore[override]
        """[B, C, T, H, W] -> [B, C, T or T / 2, H / 2, W / 2]."""
        if self.past:
            history = cache.get(self.cache_key)
            cache.append(self.cache_key, x, 1)
            x = torch.cat([x[:, :, :1].expand(-1, -1, 2, -1, -1) if history is None else history, x], dim=2)
        length = x.shape[2] // 2 if self.past else x.shape[2]
        taps = [x[:, :, tap::2][:, :, :length] for tap in range(3)] if self.past else [x]
        frames = F.pad(torch.cat(taps, dim=1), (0, 1, 0, 1)).transpose(1, 2).flatten(0, 1)
        y = F.conv2d(frames, self.weight.transpose(1, 2).flatten(1, 2), self.bias, stride=2)
        y = y.unflatten(0, (x.shape[0], length)).transpose(1, 2)
        return y.contiguous(memory_format=torch.channels_last_3d)


class Downsample(nn.Module):
    """Half the height and width; with `temporal` also one frame from every two but the first."""

    def __init__(self, channels: int, temporal: bool) -> None:
        super().__init__()
        self.conv = StridedConv(channels, temporal)

    def forward(self, x: Tensor, memory: EncoderMemory) -> Tensor:
        """[B, C, T, H, W] -> [B, C, T or T / 2, H / 2, W / 2]."""
        return memory.halve_all(x, self.conv)


class DownBlock(nn.Module):
    """Residual blocks of one level of the encoder and, unless it is the last one, the step to the next."""

    def __init__(self, widths: Sequence[int], blocks: int, groups: int, down: bool, temporal: bool) -> None:
        super().__init__()
        inputs, outputs = widths
        self.resnets = nn.ModuleList(ResidualBlock(outputs if i else inputs, outputs, groups) for i in range(blocks))
        self.downsamplers = nn.ModuleList([Downsample(outputs, temporal)] if down else [])

    def forward(self, x: Tensor, memory: EncoderMemory) -> Tensor:
        """[B, C, T, H, W] -> [B, O, T or T / 2, H / 2, W / 2], or [B, O, T, H, W] at the last level."""
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x, memory)
        return x
