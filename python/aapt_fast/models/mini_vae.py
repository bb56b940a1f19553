# SPDX-License-Identifier: Apache-2.0
"""A small causal video VAE, 4x in time and 8x in space, that trains and streams on a CPU.

Both sides are a linear map of whole 8x8x4 blocks (initialised from the PCA of the data, so training starts from the
best linear codec) plus a convolutional branch whose last layer starts at zero. The first video frame is a latent frame
of its own (it stands in for all four video frames of its block); every later latent frame holds four video frames.
Temporal convolutions look at the present and the previous frame only, so a stream equals the whole clip.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aapt_fast.errors import require, require_shape
from aapt_fast.models.config import MiniVAEConfig
from aapt_fast.models.layers import ChannelNorm, History, VideoConv, fold_space, unfold_space

SPACE, TIME, RGB = 8, 4, 3
BLOCK = RGB * TIME * SPACE * SPACE


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(norm(x))))); the first convolution may look one frame back."""

    def __init__(self, channels: int, taps: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.conv1 = VideoConv(channels, channels, taps=taps, kernel=3)
        self.conv2 = VideoConv(channels, channels, taps=1, kernel=3, init_std=0.01)

    def forward(self, x: Tensor, history: History | None) -> Tensor:
        """[B, C, T, H, W] -> the same shape."""
        hidden = self.conv1(F.silu(self.norm(x)), history)
        return x + self.conv2(F.silu(hidden))


class Encoder(nn.Module):
    """Folded video [B, 12, n, H, W] -> correction of the linear code [B, z, n, H/8, W/8]."""

    def __init__(self, config: MiniVAEConfig) -> None:
        super().__init__()
        full, half, quarter = config.encoder_widths
        counts = config.encoder_blocks
        self.conv_in = VideoConv(RGB * TIME * 4, full, taps=1, kernel=3)
        self.blocks_full = nn.ModuleList(ResidualBlock(full, taps=1) for _ in range(counts[0]))
        self.down_half = VideoConv(4 * full, half, taps=1, kernel=1)
        self.blocks_half = nn.ModuleList(ResidualBlock(half, taps=2) for _ in range(counts[1]))
        self.down_quarter = VideoConv(4 * half, quarter, taps=1, kernel=1)
        self.blocks_quarter = nn.ModuleList(ResidualBlock(quarter, taps=2) for _ in range(counts[2]))
        self.norm_out = ChannelNorm(quarter)
        self.conv_out = VideoConv(quarter, config.latent_channels, taps=1, kernel=1, init_std=0.0, full_precision=True)

    def forward(self, folded: Tensor, history: History | None) -> Tensor:
        """Folded video [B, 12, n, H, W] -> [B, z, n, H/8, W/8]; `history` carries a stream on."""
        x = self.conv_in(fold_space(folded, 2))
        for block in self.blocks_full:
            x = block(x, history)
        x = self.down_half(fold_space(x, 2))
        for block in self.blocks_half:
            x = block(x, history)
        x = self.down_quarter(fold_space(x, 2))
        for block in self.blocks_quarter:
            x = block(x, history)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """Latents [B, z, n, h, w] -> correction of the linear decoding [B, 3, 4 n, 8 h, 8 w]."""

    def __init__(self, config: MiniVAEConfig) -> None:
        super().__init__()
        full, half, quarter = config.decoder_widths
        counts = config.decoder_blocks
        self.conv_in = VideoConv(config.latent_channels, quarter, taps=2, kernel=3, full_precision=True)
        self.blocks_quarter = nn.ModuleList(ResidualBlock(quarter, taps=2) for _ in range(counts[2]))
        self.up_half = VideoConv(quarter, 8 * half, taps=1, kernel=1)
        self.blocks_half = nn.ModuleList(ResidualBlock(half, taps=2) for _ in range(counts[1]))
        self.up_full = VideoConv(half, 8 * full, taps=1, kernel=1)
        self.blocks_full = nn.ModuleList(ResidualBlock(full, taps=1) for _ in range(counts[0]))
        self.norm_out = ChannelNorm(full)
        self.conv_out = VideoConv(full, RGB * 4, taps=1, kernel=3, init_std=0.0)

    def forward(self, latents: Tensor, history: History | None) -> Tensor:
        """Latents [B, z, n, h, w] -> [B, 3, 4 n, 8 h, 8 w]; `history` carries a stream on."""
        x = self.conv_in(latents, history)
        for block in self.blocks_quarter:
            x = block(x, history)
        x = unfold_time(unfold_space(self.up_half(x), 2), 2)
        for block in self.blocks_half:
            x = block(x, history)
        x = unfold_time(unfold_space(self.up_full(x), 2), 2)
        for block in self.blocks_full:
            x = block(x, history)
        return unfold_space(self.conv_out(F.silu(self.norm_out(x))), 2)


class MiniVAE(nn.Module):
    """Encoder and decoder; latents leave and enter with unit standard deviation.

    `encode`: video [B, 3, 1 + 4 n, H, W] in -1..1 -> latents [B, z, 1 + n, H/8, W/8].
    `decode`: the way back, clamped to -1..1. Both raise ValueError for other shapes.
    """

    def __init__(self, config: MiniVAEConfig = MiniVAEConfig()) -> None:
        super().__init__()
        self.config = config
        self.linear_encoder = VideoConv(BLOCK, config.latent_channels, taps=1, kernel=1)
        self.linear_decoder = VideoConv(config.latent_channels, BLOCK, taps=1, kernel=1)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.register_buffer("latent_std", torch.ones(()))

    @property
    def latent_channels(self) -> int:
        """z, channels of a latent frame."""
        return self.config.latent_channels

    def encode(self, video: Tensor, linear_only: bool = False) -> Tensor:
        """Video [B, 3, 1 + 4 n, H, W] in -1..1 -> latents [B, z, 1 + n, H/8, W/8] of unit standard deviation."""
        require_shape("video", video, "B", RGB, "1 + 4 n", "H", "W")
        frames, height, width = video.shape[2:]
        require(frames % TIME == 1, "video", "1 + 4 n video frames", frames)
        require(height % SPACE == 0 and width % SPACE == 0, "video", "H, W multiples of 8", (height, width))
        folded = fold_time(torch.cat([video[:, :, :1].expand(-1, -1, TIME - 1, -1, -1), video], dim=2), TIME)
        latents = self.linear_encoder(fold_space(folded, SPACE))
        if not linear_only:
            latents = latents + self.encoder(folded, None)
        return latents / self.latent_std.to(latents.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, z, 1 + n, h, w] -> video [B, 3, 1 + 4 n, 8 h, 8 w] in -1..1."""
        return self.reconstruct(latents)[:, :, TIME - 1 :].clamp(-1, 1)

    def reconstruct(self, latents: Tensor, history: History | None = None, linear_only: bool = False) -> Tensor:
        """Latents [B, z, n, h, w] -> unclamped video [B, 3, 4 n, 8 h, 8 w]; `history` carries a stream on."""
        require_shape("latents", latents, "B", self.latent_channels, "n", "h", "w")
        latents = latents * self.latent_std.to(latents.dtype)
        video = unfold_time(unfold_space(self.linear_decoder(latents), SPACE), TIME)
        return video if linear_only else video + self.decoder(latents, history)

    def stream(self) -> VideoStream:
        """A streaming decoder that continues from chunk to chunk."""
        return VideoStream(self)

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


class VideoStream:
    """Decodes latent frames as they come: the first gives one video frame, every later one four."""

    def __init__(self, vae: MiniVAE) -> None:
        self._vae = vae
        self._history = History()
        self._started = False

    def decode(self, latents: Tensor) -> Tensor:
        """The next latents [B, z, n, h, w] -> their video frames [B, 3, F, 8 h, 8 w] in -1..1."""
        video = self._vae.reconstruct(latents, self._history).clamp(-1, 1)
        if not self._started:
            video = video[:, :, TIME - 1 :]
        self._started = True
        return video

    def clone(self) -> VideoStream:
        """A stream that continues from here on its own, bit for bit."""
        other = VideoStream(self._vae)
        other._history, other._started = self._history.clone(), self._started
        return other

    def reset(self) -> None:
        """Forget everything decoded so far."""
        self._history, self._started = History(), False


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
