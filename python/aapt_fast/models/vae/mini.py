# SPDX-License-Identifier: Apache-2.0
"""A small causal video VAE, 4x in time and 8x in space, that trains and streams on a CPU.

Both sides are a linear map of whole 8x8x4 blocks (initialised from the PCA of the data, so training starts from the
best linear codec) plus a convolutional branch whose last layer starts at zero. The first video frame is a latent frame
of its own (it stands in for all four video frames of its block); every later latent frame holds four video frames.
Temporal convolutions look at the present and the previous frame only, so a stream equals the whole clip.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aapt_fast.errors import require, require_shape
from aapt_fast.models.autocast import without_autocast
from aapt_fast.models.vae.feature_cache import FeatureCache
from aapt_fast.models.vae.layers import (
    CausalConv3d,
    Chain,
    fold_space,
    fold_time,
    name_cached_layers,
    unfold_space,
    unfold_time,
)
from aapt_fast.models.vae.video_stream import DecoderStream, require_latents

SPACE, TIME, RGB = 8, 4, 3
BLOCK = RGB * TIME * SPACE * SPACE


@dataclass(frozen=True)
class MiniVAEConfig:
    """Widths and numbers of blocks, listed from full resolution downwards."""

    latent_channels: int = 16
    encoder_widths: tuple[int, int, int] = (48, 96, 160)
    encoder_blocks: tuple[int, int, int] = (1, 1, 2)
    decoder_widths: tuple[int, int, int] = (48, 112, 192)
    decoder_blocks: tuple[int, int, int] = (2, 2, 2)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> MiniVAEConfig:
        """The configuration that `dataclasses.asdict` and JSON made `data` of; raises TypeError for unknown fields."""
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
        }
        return cls(**fields)


class NarrowConv(CausalConv3d):
    """A convolution that leaves autocast: where 16 channels meet a wide layer, oneDNN's bf16 backward is up to 40 times
    slower than fp32."""

    def forward(self, x: Tensor, cache: FeatureCache | None = None) -> Tensor:
        """[B, C, T, H, W] -> [B, O, T, H, W]."""
        with without_autocast(x.device):
            return super().forward(x.to(self.weight.dtype), cache)


def convolution(
    inputs: int, outputs: int, *, taps: int, kernel: int, init_std: float | None = None, narrow: bool = False
) -> CausalConv3d:
    """A causal convolution over `taps` frames and kernel x kernel pixels, with small random weights and no bias."""
    layer = (NarrowConv if narrow else CausalConv3d)(inputs, outputs, (taps, kernel, kernel))
    fan_in = inputs * taps * kernel * kernel
    nn.init.normal_(layer.weight, std=(3 * fan_in) ** -0.5 if init_std is None else init_std)
    nn.init.zeros_(layer.bias)
    return layer


class ChannelNorm(nn.Module):
    """RMSNorm over the channels of [B, C, T, H, W] with a learned gain."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> the same shape."""
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
        scale = torch.rsqrt(norm.square() / x.shape[1] + 1e-5).to(x.dtype)
        return x * scale * self.gain.to(x.dtype).view(1, -1, 1, 1, 1)


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(norm(x))))); the first convolution may look one frame back."""

    def __init__(self, channels: int, taps: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.conv1 = convolution(channels, channels, taps=taps, kernel=3)
        self.conv2 = convolution(channels, channels, taps=1, kernel=3, init_std=0.01)

    def forward(self, x: Tensor, cache: FeatureCache | None) -> Tensor:
        """[B, C, T, H, W] -> the same shape."""
        hidden = self.conv1(F.silu(self.norm(x), inplace=True), cache)
        return x + self.conv2(F.silu(hidden))


class Encoder(nn.Module):
    """Folded video [B, 12, n, H, W] -> correction of the linear code [B, z, n, H/8, W/8]."""

    def __init__(self, config: MiniVAEConfig) -> None:
        super().__init__()
        full, half, quarter = config.encoder_widths
        counts = config.encoder_blocks
        self.conv_in = convolution(RGB * TIME * 4, full, taps=1, kernel=3)
        self.blocks_full = Chain(ResidualBlock(full, taps=1) for _ in range(counts[0]))
        self.down_half = convolution(4 * full, half, taps=1, kernel=1)
        self.blocks_half = Chain(ResidualBlock(half, taps=2) for _ in range(counts[1]))
        self.down_quarter = convolution(4 * half, quarter, taps=1, kernel=1)
        self.blocks_quarter = Chain(ResidualBlock(quarter, taps=2) for _ in range(counts[2]))
        self.norm_out = ChannelNorm(quarter)
        self.conv_out = convolution(quarter, config.latent_channels, taps=1, kernel=1, init_std=0.0, narrow=True)

    def forward(self, folded: Tensor, cache: FeatureCache | None) -> Tensor:
        """Folded video [B, 12, n, H, W] -> [B, z, n, H/8, W/8]; `cache` carries a stream on."""
        x = self.blocks_full(self.conv_in(fold_space(folded, 2)), cache)
        x = self.blocks_half(self.down_half(fold_space(x, 2)), cache)
        x = self.blocks_quarter(self.down_quarter(fold_space(x, 2)), cache)
        return self.conv_out(F.silu(self.norm_out(x), inplace=True))


class Decoder(nn.Module):
    """Latents [B, z, n, h, w] -> correction of the linear decoding [B, 3, 4 n, 8 h, 8 w]."""

    def __init__(self, config: MiniVAEConfig) -> None:
        super().__init__()
        full, half, quarter = config.decoder_widths
        counts = config.decoder_blocks
        self.conv_in = convolution(config.latent_channels, quarter, taps=2, kernel=3, narrow=True)
        self.blocks_quarter = Chain(ResidualBlock(quarter, taps=2) for _ in range(counts[2]))
        self.up_half = convolution(quarter, 8 * half, taps=1, kernel=1)
        self.blocks_half = Chain(ResidualBlock(half, taps=2) for _ in range(counts[1]))
        self.up_full = convolution(half, 8 * full, taps=1, kernel=1)
        self.blocks_full = Chain(ResidualBlock(full, taps=1) for _ in range(counts[0]))
        self.norm_out = ChannelNorm(full)
        self.conv_out = convolution(full, RGB * 4, taps=1, kernel=3, init_std=0.0)

    def forward(self, latents: Tensor, cache: FeatureCache | None) -> Tensor:
        """Latents [B, z, n, h, w] -> [B, 3, 4 n, 8 h, 8 w]; `cache` carries a stream on."""
        x = self.blocks_quarter(self.conv_in(latents, cache), cache)
        x = self.blocks_half(_enlarge(self.up_half(x)), cache)
        x = self.blocks_full(_enlarge(self.up_full(x)), cache)
        return unfold_space(self.conv_out(F.silu(self.norm_out(x), inplace=True)), 2)


class MiniVAE(nn.Module):
    """Encoder and decoder; latents leave and enter with unit standard deviation.

    `encode`: video [B, 3, 1 + 4 n, H, W] in -1..1 -> latents [B, z, 1 + n, H/8, W/8].
    `decode`: the way back, clamped to -1..1. Both cast their input to the dtype of the parameters and raise ValueError
    for other shapes.
    """

    spatial_factor = SPACE
    """Pixels per latent pixel along height and along width."""

    def __init__(self, config: MiniVAEConfig = MiniVAEConfig()) -> None:
        super().__init__()
        self.config = config
        self.latent_channels = config.latent_channels
        self.linear_encoder = convolution(BLOCK, config.latent_channels, taps=1, kernel=1)
        self.linear_decoder = convolution(config.latent_channels, BLOCK, taps=1, kernel=1)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.register_buffer("latent_std", torch.ones(()))
        name_cached_layers(self)

    def encode(self, video: Tensor, linear_only: bool = False) -> Tensor:
        """Video [B, 3, 1 + 4 n, H, W] in -1..1 -> latents [B, z, 1 + n, H/8, W/8] of unit standard deviation."""
        require_shape("video", video, "B", RGB, "1 + 4 n", "H", "W")
        frames, height, width = video.shape[2:]
        require(frames % TIME == 1, "video", "1 + 4 n video frames", frames)
        require(height % SPACE == 0 and width % SPACE == 0, "video", "H, W multiples of 8", (height, width))
        video = video.to(self.linear_encoder.weight.dtype)
        folded = fold_time(torch.cat([video[:, :, :1].expand(-1, -1, TIME - 1, -1, -1), video], dim=2), TIME)
        latents = self.linear_encoder(fold_space(folded, SPACE))
        if not linear_only:
            latents = latents + self.encoder(folded, None)
        return latents / self.latent_std.to(latents.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, z, 1 + n, h, w] -> video [B, 3, 1 + 4 n, 8 h, 8 w] in -1..1."""
        require_latents(latents, self.latent_channels)
        latents = latents.to(self.linear_decoder.weight.dtype)
        return self.reconstruct(latents)[:, :, TIME - 1 :].clamp(-1, 1)

    def decode_chunk(self, latents: Tensor, cache: FeatureCache) -> Tensor:
        """The next latents [B, z, n, h, w] of the stream of `cache` -> video [B, 3, F, 8 h, 8 w] in -1..1.

        F = 4 n, but one for the first latent frame.
        """
        first = len(cache) == 0
        video = self.reconstruct(latents.to(self.linear_decoder.weight.dtype), cache).clamp(-1, 1)
        return video[:, :, TIME - 1 :] if first else video

    def reconstruct(self, latents: Tensor, cache: FeatureCache | None = None, linear_only: bool = False) -> Tensor:
        """Latents [B, z, n, h, w] -> unclamped video [B, 3, 4 n, 8 h, 8 w]; `cache` carries a stream on."""
        latents = latents * self.latent_std.to(latents.dtype)
        video = unfold_time(unfold_space(self.linear_decoder(latents), SPACE), TIME)
        return video if linear_only else video + self.decoder(latents, cache)

    def stream(self) -> DecoderStream:
        """A streaming decoder at the start of a video."""
        return DecoderStream(self)

    @torch.no_grad()
    def fit_linear(self, video: Tensor) -> None:
        """Set both linear maps to the PCA of the 8x8x4 blocks of `video` [B, 3, 4 n, H, W].

        Channels keep the square root of their standard deviation, so that strong ones stay stronger.
        """
        blocks = fold_space(fold_time(video, TIME), SPACE).permute(0, 2, 3, 4, 1).reshape(-1, BLOCK)
        mean = blocks.mean(0)
        covariance = (blocks - mean).T @ (blocks - mean) / len(blocks)
        variances, directions = torch.linalg.eigh(covariance)
        basis = directions.flip(1)[:, : self.latent_channels]
        deviation = variances.flip(0)[: self.latent_channels].clamp_min(1e-12).sqrt()
        scale = (deviation * deviation[0]).sqrt()
        scale = scale * (deviation / scale).square().mean().sqrt()
        self.linear_encoder.weight.copy_((basis / scale).T.reshape(self.linear_encoder.weight.shape))
        self.linear_encoder.bias.copy_(-(mean @ basis) / scale)
        self.linear_decoder.weight.copy_((basis * scale).reshape(self.linear_decoder.weight.shape))
        self.linear_decoder.bias.copy_(mean)


def _enlarge(x: Tensor) -> Tensor:
    """[B, 8 C, n, H, W] -> [B, C, 2 n, 2 H, 2 W], in the memory format that the following layers are fastest in."""
    return unfold_time(unfold_space(x, 2), 2).contiguous(memory_format=torch.channels_last_3d)
