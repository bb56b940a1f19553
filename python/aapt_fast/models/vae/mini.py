# SPDX-License-Identifier: Apache-2.0
"""A small causal video VAE, 4x in time and 8x or 16x in space, that trains and streams on a CPU.

Both sides are a linear map of whole blocks, 8x8x4 or 16x16x4 (initialised from the PCA of the data, so training starts
from the best linear codec), plus a convolutional branch whose last layer starts at zero. The first video frame is a
latent frame of its own (it stands in for all four video frames of its block); every later latent frame holds four
video frames. Temporal convolutions look at the present and the previous frame only, so a stream equals the whole clip.
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

TIME, RGB = 4, 3
LEVELS = ("full", "half", "quarter", "eighth")
"""Resolutions of the convolutions; full stands for half of the pixels in either direction."""


@dataclass(frozen=True)
class MiniVAEConfig:
    """Widths and numbers of blocks of the levels, listed from full resolution downwards.

    Three levels make a codec of 8 pixels per latent cell, four one of 16. Raises ValueError for other numbers.
    """

    latent_channels: int = 16
    encoder_widths: tuple[int, ...] = (48, 96, 160)
    encoder_blocks: tuple[int, ...] = (1, 1, 2)
    decoder_widths: tuple[int, ...] = (48, 112, 192)
    decoder_blocks: tuple[int, ...] = (2, 2, 2)
    sees_linear: bool = False
    """True if the convolutions of the decoder see the linear decoding, which they correct: so they learn faster."""

    def __post_init__(self) -> None:
        levels = len(self.decoder_widths)
        require(levels in (3, 4), "decoder_widths", "3 or 4 levels", self.decoder_widths)
        for name in ("encoder_widths", "encoder_blocks", "decoder_blocks"):
            require(len(getattr(self, name)) == levels, name, f"{levels} levels", getattr(self, name))

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent cell along height and along width: 8 or 16."""
        return 2 ** len(self.decoder_widths)

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the levels, from full resolution downwards."""
        return LEVELS[: len(self.decoder_widths)]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> MiniVAEConfig:
        """The configuration that `dataclasses.asdict` and JSON made `data` of; raises TypeError for unknown fields."""
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
        }
        return cls(**fields)


LARGE = MiniVAEConfig(48, (32, 64, 112, 128), (1, 1, 1, 1), (32, 96, 160, 160), (2, 2, 2, 1), sees_linear=True)
"""The codec of 16 pixels per latent cell."""


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
    """Folded video [B, 12, n, H, W] -> correction of the linear code [B, z, n, H/s, W/s], s pixels per latent cell."""

    def __init__(self, config: MiniVAEConfig) -> None:
        super().__init__()
        widths, self.levels = config.encoder_widths, config.levels
        self.conv_in = convolution(RGB * TIME * 4, widths[0], taps=1, kernel=3)
        for level, above, width, count in zip(self.levels, (0, *widths), widths, config.encoder_blocks, strict=False):
            if above:
                self.add_module(f"down_{level}", convolution(4 * above, width, taps=1, kernel=1))
            taps = 2 if above else 1
            self.add_module(f"blocks_{level}", Chain(ResidualBlock(width, taps=taps) for _ in range(count)))
        self.norm_out = ChannelNorm(widths[-1])
        self.conv_out = convolution(widths[-1], config.latent_channels, taps=1, kernel=1, init_std=0.0, narrow=True)

    def forward(self, folded: Tensor, cache: FeatureCache | None) -> Tensor:
        """Folded video [B, 12, n, H, W] -> [B, z, n, H/s, W/s]; `cache` carries a stream on."""
        x = self.conv_in(fold_space(folded, 2))
        for level in self.levels:
            if level != LEVELS[0]:
                x = self.get_submodule(f"down_{level}")(fold_space(x, 2))
            x = self.get_submodule(f"blocks_{level}")(x, cache)
        return self.conv_out(F.silu(self.norm_out(x), inplace=True))


class Decoder(nn.Module):
    """Latents [B, z, n, h, w] -> correction of the linear decoding [B, 3, 4 n, s h, s w], s pixels per latent cell.

    Time doubles on the way to the levels half and full. These two may see the linear decoding, folded to their size.
    """

    def __init__(self, config: MiniVAEConfig) -> None:
        super().__init__()
        widths, self.levels, self.sees_linear = config.decoder_widths, config.levels[::-1], config.sees_linear
        self.conv_in = convolution(config.latent_channels, widths[-1], taps=2, kernel=3, narrow=True)
        below = 0
        for level, width, count in zip(self.levels, widths[::-1], config.decoder_blocks[::-1], strict=True):
            if below:
                grown = (8 if level in LEVELS[:2] else 4) * width
                self.add_module(f"up_{level}", convolution(below, grown, taps=1, kernel=1))
            if config.sees_linear and level in LEVELS[:2]:
                folded = RGB * 4 if level == LEVELS[0] else RGB * 16 * 2
                self.add_module(f"see_{level}", convolution(folded, width, taps=1, kernel=3))
            taps = 1 if level == LEVELS[0] else 2
            self.add_module(f"blocks_{level}", Chain(ResidualBlock(width, taps=taps) for _ in range(count)))
            below = width
        self.norm_out = ChannelNorm(widths[0])
        self.conv_out = convolution(widths[0], RGB * 4, taps=1, kernel=3, init_std=0.0)

    def forward(self, latents: Tensor, linear: Tensor, cache: FeatureCache | None) -> Tensor:
        """Latents [B, z, n, h, w], decoded linearly [B, 3, 4 n, s h, s w] -> the same shape.

        `cache` carries a stream on.
        """
        folded = {"full": lambda: fold_space(linear, 2), "half": lambda: fold_space(fold_time(linear, 2), 4)}
        x = self.conv_in(latents, cache)
        for level in self.levels:
            if level != self.levels[0]:
                x = _enlarge(self.get_submodule(f"up_{level}")(x), time=2 if level in folded else 1)
            if self.sees_linear and level in folded:
                x = x + self.get_submodule(f"see_{level}")(folded[level]())
            x = self.get_submodule(f"blocks_{level}")(x, cache)
        return unfold_space(self.conv_out(F.silu(self.norm_out(x), inplace=True)), 2)


class MiniVAE(nn.Module):
    """Encoder and decoder; latents leave and enter with unit standard deviation.

    `encode`: video [B, 3, 1 + 4 n, H, W] in -1..1 -> latents [B, z, 1 + n, H/s, W/s] of s = 8 or 16 pixels per cell.
    `decode`: the way back, clamped to -1..1. Both cast their input to the dtype of the parameters and raise ValueError
    for other shapes.
    """

    def __init__(self, config: MiniVAEConfig = MiniVAEConfig()) -> None:
        super().__init__()
        self.config, self.latent_channels, self.spatial_factor = config, config.latent_channels, config.spatial_factor
        block = RGB * TIME * self.spatial_factor**2
        self.linear_encoder = convolution(block, config.latent_channels, taps=1, kernel=1)
        self.linear_decoder = convolution(config.latent_channels, block, taps=1, kernel=1)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.register_buffer("latent_std", torch.ones(()))
        name_cached_layers(self)

    def encode(self, video: Tensor, linear_only: bool = False) -> Tensor:
        """Video [B, 3, 1 + 4 n, H, W] in -1..1 -> latents [B, z, 1 + n, H/s, W/s] of unit standard deviation."""
        require_shape("video", video, "B", RGB, "1 + 4 n", "H", "W")
        frames, height, width = video.shape[2:]
        require(frames % TIME == 1, "video", "1 + 4 n video frames", frames)
        multiple = self.spatial_factor
        fits = height % multiple == 0 and width % multiple == 0
        require(fits, "video", f"H, W multiples of {multiple}", (height, width))
        video = video.to(self.linear_encoder.weight.dtype)
        folded = fold_time(torch.cat([video[:, :, :1].expand(-1, -1, TIME - 1, -1, -1), video], dim=2), TIME)
        latents = self.linear_encoder(fold_space(folded, self.spatial_factor))
        if not linear_only:
            latents = latents + self.encoder(folded, None)
        return latents / self.latent_std.to(latents.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, z, 1 + n, h, w] -> video [B, 3, 1 + 4 n, s h, s w] in -1..1."""
        require_latents(latents, self.latent_channels)
        latents = latents.to(self.linear_decoder.weight.dtype)
        return self.reconstruct(latents)[:, :, TIME - 1 :].clamp(-1, 1)

    def decode_chunk(self, latents: Tensor, cache: FeatureCache) -> Tensor:
        """The next latents [B, z, n, h, w] of the stream of `cache` -> video [B, 3, F, s h, s w] in -1..1.

        F = 4 n, but one for the first latent frame.
        """
        first = len(cache) == 0
        video = self.reconstruct(latents.to(self.linear_decoder.weight.dtype), cache).clamp(-1, 1)
        return video[:, :, TIME - 1 :] if first else video

    def reconstruct(self, latents: Tensor, cache: FeatureCache | None = None, linear_only: bool = False) -> Tensor:
        """Latents [B, z, n, h, w] -> unclamped video [B, 3, 4 n, s h, s w]; `cache` carries a stream on."""
        latents = latents * self.latent_std.to(latents.dtype)
        video = unfold_time(unfold_space(self.linear_decoder(latents), self.spatial_factor), TIME)
        return video if linear_only else video + self.decoder(latents, video, cache)

    def stream(self) -> DecoderStream:
        """A streaming decoder at the start of a video."""
        return DecoderStream(self)

    @torch.no_grad()
    def fit_linear(self, video: Tensor) -> None:
        """Set both linear maps to the PCA of the blocks of `video` [B, 3, 4 n, H, W].

        Channels keep the square root of their standard deviation, so that strong ones stay stronger.
        """
        folded = fold_space(fold_time(video, TIME), self.spatial_factor)
        blocks = folded.permute(0, 2, 3, 4, 1).reshape(-1, folded.shape[1])
        mean = blocks.mean(0)
        blocks = blocks - mean
        covariance = blocks.T @ blocks / len(blocks)
        variances, directions = torch.linalg.eigh(covariance)
        basis = directions.flip(1)[:, : self.latent_channels]
        deviation = variances.flip(0)[: self.latent_channels].clamp_min(1e-12).sqrt()
        scale = (deviation * deviation[0]).sqrt()
        scale = scale * (deviation / scale).square().mean().sqrt()
        self.linear_encoder.weight.copy_((basis / scale).T.reshape(self.linear_encoder.weight.shape))
        self.linear_encoder.bias.copy_(-(mean @ basis) / scale)
        self.linear_decoder.weight.copy_((basis * scale).reshape(self.linear_decoder.weight.shape))
        self.linear_decoder.bias.copy_(mean)


def _enlarge(x: Tensor, time: int) -> Tensor:
    """[B, 4 time C, n, H, W] -> [B, C, time n, 2 H, 2 W], in the memory format that is fastest for what follows."""
    return unfold_time(unfold_space(x, 2), time).contiguous(memory_format=torch.channels_last_3d)
