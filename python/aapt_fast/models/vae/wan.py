# SPDX-License-Identifier: Apache-2.0
"""The causal video VAEs of Wan 2.1 (arXiv 2503.20314) and 2.2, whole clips and streams, in the published key layouts.

Time goes 1 + 4 n video frames <-> 1 + n latent frames, space 8 x 8 pixels (16 x 16 for Wan 2.2) <-> one latent pixel.
The first latent frame stands for one video frame, every later one for four. Latents are normalised:
(latent - mean) / std per channel, with the published statistics. A checkpoint of the original code loads with
`load_state_dict(strict=True)`; `load_vae` reads those of diffusers, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aapt_fast.errors import require, require_shape
from aapt_fast.models.vae.layers import CausalConv3d, Chain, name_cached_layers
from aapt_fast.models.vae.memory import DecoderMemory, EncoderMemory, Frames
from aapt_fast.models.vae.packed_weights import PackedWeights
from aapt_fast.models.vae.picture_memory import encoder_memory
from aapt_fast.models.vae.video_stream import ChunkedVAE
from aapt_fast.models.vae.wan_layers import HALVES, Downsample, FrameAttention, ResidualBlock, RMSNorm, Upsample
from aapt_fast.models.vae.wan_residual import DownLevel, UpLevel, channels_to_pixels, pixels_to_channels
from aapt_fast.models.vae.wan_statistics import WAN_2_1_MEAN, WAN_2_1_STD, WAN_2_2_MEAN, WAN_2_2_STD

RGB = 3


@dataclass(frozen=True)
class WanVAEConfig:
    """Widths are `base_dim * dim_mult`, from full resolution downwards; the decoder mirrors the encoder.

    Between two levels space halves; where `temporal_downsample` is True, time halves too. The decoder may have a
    `base_dim` of its own. Wan 2.2 has shortcuts around levels (`is_residual`) and takes blocks of `patch_size` x
    `patch_size` pixels as one. The names are those of diffusers' configuration, but for `temporal_downsample`.
    """

    base_dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    latents_mean: tuple[float, ...] = WAN_2_1_MEAN
    latents_std: tuple[float, ...] = WAN_2_1_STD
    decoder_base_dim: int | None = None
    is_residual: bool = False
    patch_size: int = 1

    def __post_init__(self) -> None:
        levels = len(self.dim_mult)
        for name in ("base_dim", "num_res_blocks", "patch_size"):
            require(getattr(self, name) > 0, name, "at least 1", getattr(self, name))
        require(self.decoder_base_dim is None or self.decoder_base_dim > 0, "decoder_base_dim", "at least 1", 0)
        require(levels > 0, "dim_mult", "at least one level", self.dim_mult)
        require(min(self.dim_mult) > 0, "dim_mult", "at least 1 each", self.dim_mult)
        given = len(self.temporal_downsample)
        require(given == levels - 1, "temporal_downsample", f"{levels - 1} entries, one per level change", given)
        for name in ("latents_mean", "latents_std"):
            given = len(getattr(self, name))
            require(given == self.z_dim, name, f"z_dim = {self.z_dim} entries", given)
        require(min(self.latents_std) > 0, "latents_std", "positive numbers", self.latents_std)
        if self.is_residual:
            self._require_shortcuts()
        else:
            halved = self.decoder_widths[1:]
            require(
                all(width % 2 == 0 for width in halved), "base_dim * dim_mult", "even below the first level", halved
            )

    def _require_shortcuts(self) -> None:
        """Averages and copies need whole numbers of channels."""
        for level, outputs in enumerate(self.widths):
            inputs, last = self.widths[max(level - 1, 0)] if level else self.base_dim, level == len(self.widths) - 1
            values = inputs if last else inputs * 4 * (1 + self.temporal_downsample[level])
            require(values % outputs == 0, "dim_mult", f"a width that divides {values} at level {level}", outputs)
        up = self.decoder_widths[::-1]
        for level, (inputs, outputs) in enumerate(zip((up[0], *up), up[:-1], strict=False)):
            copies = outputs * 4 * (1 + self.temporal_downsample[-1 - level])
            require(copies % inputs == 0, "dim_mult", f"a decoder width that divides {copies}", inputs)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels per level of the encoder, full resolution first."""
        return tuple(self.base_dim * mult for mult in self.dim_mult)

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        """Channels per level of the decoder, full resolution first."""
        return tuple((self.decoder_base_dim or self.base_dim) * mult for mult in self.dim_mult)

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent pixel along height and along width."""
        return self.patch_size * 2 ** len(self.temporal_downsample)

    @property
    def temporal_factor(self) -> int:
        """Video frames per latent frame after the first."""
        return 2 ** sum(self.temporal_downsample)


WAN_2_2 = WanVAEConfig(
    base_dim=160,
    decoder_base_dim=256,
    z_dim=48,
    is_residual=True,
    patch_size=2,
    latents_mean=WAN_2_2_MEAN,
    latents_std=WAN_2_2_STD,
)
"""The published VAE of Wan 2.2 (TI2V 5B); `WanVAEConfig()` is that of Wan 2.1."""


class Encoder(nn.Module):
    """Pixel blocks [B, 3 p^2, T, H, W] -> mean, log-variance [B, 2 z, T', h, w], before the last 1x1x1 convolution."""

    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        widths, last = config.widths, len(config.widths) - 1
        self.conv1 = CausalConv3d(RGB * config.patch_size**2, config.base_dim, 3)
        self.downsamples = Chain()
        for level, (inputs, outputs) in enumerate(zip((config.base_dim, *widths), widths, strict=False)):
            temporal = level < last and config.temporal_downsample[level]
            if config.is_residual:
                self.downsamples.append(DownLevel(inputs, outputs, config.num_res_blocks, temporal, level < last))
                continue
            for block in range(config.num_res_blocks):
                self.downsamples.append(ResidualBlock(outputs if block else inputs, outputs))
            if level < last:
                self.downsamples.append(Downsample(outputs, temporal))
        self.middle = middle_layers(widths[-1])
        self.head = nn.ModuleDict({"0": RMSNorm(widths[-1]), "2": CausalConv3d(widths[-1], 2 * config.z_dim, 3)})

    def forward(self, video: Tensor, memory: EncoderMemory) -> Tensor:
        """The next chunk [B, 3 p^2, T, H, W] of the stream that `memory` belongs to -> [B, 2 z, T', h, w]."""
        x = memory.conv(video, self.conv1)
        x = self.middle(self.downsamples(x, memory), memory)
        return memory.norm_conv(x, self.head["0"], self.head["2"])


class Decoder(nn.Module):
    """Latents [B, z, T', h, w], after the first 1x1x1 convolution -> pixel blocks [B, 3 p^2, T, H, W], not clamped."""

    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        widths, last = config.decoder_widths[::-1], len(config.dim_mult) - 1
        self.conv1 = CausalConv3d(config.z_dim, widths[0], 3)
        self.middle = middle_layers(widths[0])
        self.upsamples = Chain()
        for level, (inputs, outputs) in enumerate(zip((widths[0], *widths), widths, strict=False)):
            temporal = level < last and config.temporal_downsample[-1 - level]
            if config.is_residual:
                self.upsamples.append(UpLevel(inputs, outputs, config.num_res_blocks, temporal, level < last))
                continue
            halved = inputs // 2 if level else inputs
            for block in range(config.num_res_blocks + 1):
                self.upsamples.append(ResidualBlock(outputs if block else halved, outputs))
            if level < last:
                self.upsamples.append(Upsample(outputs, temporal, outputs // 2))
        colours = RGB * config.patch_size**2
        self.head = nn.ModuleDict({"0": RMSNorm(widths[-1]), "2": CausalConv3d(widths[-1], colours, 3)})

    def forward(self, latents: Frames, memory: DecoderMemory) -> Frames:
        """The next chunk [B, z, T', h, w] of the stream that `memory` belongs to -> [B, 3 p^2, T, H, W]."""
        x = memory.conv(latents, self.conv1)
        x = self.upsamples(self.middle(x, memory), memory)
        return memory.norm_conv(x, self.head["0"], self.head["2"], last_use=True)


def middle_layers(width: int) -> Chain:
    """The layers at the lowest resolution."""
    return Chain([ResidualBlock(width, width), FrameAttention(width), ResidualBlock(width, width)])


class WanVAE(ChunkedVAE):
    """Encoder and decoder of Wan 2.1 or 2.2. It computes in the dtype of its parameters and casts its input to that.

    `encode` and `decode` take whole clips and are differentiable; `stream` decodes a clip piece by piece.
    """

    def __init__(self, config: WanVAEConfig = WanVAEConfig()) -> None:
        super().__init__()
        self.config, self.latent_channels, self.spatial_factor = config, config.z_dim, config.spatial_factor
        self.encoder = Encoder(config)
        self.conv1 = CausalConv3d(2 * config.z_dim, 2 * config.z_dim, 1)
        self.conv2 = CausalConv3d(config.z_dim, config.z_dim, 1)
        self.decoder = Decoder(config)
        self.packed_weights = PackedWeights()
        for name in ("latents_mean", "latents_std"):
            self.register_buffer(name, self._statistic(name), persistent=False)
        name_cached_layers(self)

    def _statistic(self, name: str) -> Tensor:
        return _constant(getattr(self.config, name)).view(-1, 1, 1, 1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> WanVAE:
        """Move and cast, for `to`, `bfloat16` and others; the statistics of the latents stay in float32."""
        super()._apply(fn, recurse)
        for name in ("latents_mean", "latents_std"):
            moved = getattr(self, name)
            if moved.dtype in HALVES:
                setattr(self, name, self._statistic(name).to(moved.device))
        return self

    def encode(self, video: Tensor) -> Tensor:
        """Video [B, 3, 1 + 4 n, H, W] in -1..1 -> normalised latents [B, z, 1 + n, h, w], the mean of the posterior.

        `video` has any floating-point dtype, H and W are multiples of 8, for Wan 2.2 of 16. Raises ValueError for
        another shape or dtype.
        """
        self._check_video(video)
        factor, length = self.config.temporal_factor, video.shape[2]
        require(length % factor == 1 % factor, "video", f"1 + {factor} n video frames", length)
        memory = encoder_memory(self, video)
        sizes = [1] + [factor] * ((length - 1) // factor)
        pieces = [self.encode_chunk(piece, memory) for piece in video.split(sizes, dim=2)]
        mean = torch.cat(pieces, dim=2)[:, : self.latent_channels]
        return ((mean - self.latents_mean) / self.latents_std).to(mean.dtype)

    def encode_chunk(self, video: Tensor, memory: EncoderMemory) -> Tensor:
        """The next video frames [B, 3, F, H, W] of the stream of `memory` -> mean and log-variance [B, 2 z, n, h, w].

        F = 1 and n = 1 for the first chunk, then F = 4 n. The mean is not normalised.
        """
        blocks = pixels_to_channels(video.to(self.conv1.weight.dtype), self.config.patch_size)
        blocks = blocks.contiguous(memory_format=torch.channels_last_3d)
        return memory.conv(self.encoder(blocks, memory), self.conv1)

    def decode_chunk(self, latents: Tensor, memory: DecoderMemory, out: str = "float") -> Tensor:
        """The next normalised latents [B, z, n, h, w] of the stream of `memory` -> video [B, 3, F, H, W] in -1..1.

        F = 1 for the first chunk, which has n = 1, then 4 n. With `out` "uint8", colours in 0..255.
        """
        dtype = self.conv2.weight.dtype
        wide = latents.to(torch.promote_types(dtype, torch.float32))
        latents = (wide * self.latents_std + self.latents_mean).to(dtype)
        latents = latents.contiguous(memory_format=torch.channels_last_3d)
        blocks = memory.output(self.run_layers(latents, memory), out)
        video = channels_to_pixels(blocks, self.config.patch_size)
        return video.clamp(-1, 1) if out == "float" else video

    def run_layers(self, latents: Tensor, memory: DecoderMemory) -> Frames:
        """The next chunk [B, z, n, h, w], in the dtype of the weights, through all layers -> [B, 3 p^2, F, H, W]."""
        return self.decoder(memory.conv(latents, self.conv2), memory)

    def _check_video(self, video: Tensor) -> None:
        require_shape("video", video, "B", RGB, "T", "H", "W")
        require(video.is_floating_point(), "video", "a floating-point dtype", video.dtype)
        factor, size = self.config.spatial_factor, tuple(video.shape[3:])
        require(min(video.shape) > 0, "video", "at least one element in every dimension", list(video.shape))
        require(all(n % factor == 0 for n in size), "video", f"height and width multiples of {factor}", size)


def _constant(values: Sequence[float]) -> Tensor:
    """`values` as a tensor [n] for a buffer that no file holds: it has them even where a module is built on meta."""
    device = torch.get_default_device()
    return torch.tensor(values, dtype=torch.float32, device="cpu" if device.type == "meta" else device)
