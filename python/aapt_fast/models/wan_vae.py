# SPDX-License-Identifier: Apache-2.0
"""The causal video VAE of Wan 2.1 (arXiv 2503.20314), whole clips and streams, in the published key layout.

Time goes 1 + 4 n video frames <-> 1 + n latent frames, space 8 x 8 pixels <-> one latent pixel (for the default
configuration). The first latent frame stands for one video frame, every later one for four. Latents are normalised:
(latent - mean) / std per channel, with the published statistics. A checkpoint of the original code loads with
`load_state_dict(strict=True)`, one of diffusers after `wan_vae_keys.from_diffusers_state_dict`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aapt_fast.errors import require, require_shape
from aapt_fast.models.layers import CausalConv3d, FeatureCache, name_cached_layers
from aapt_fast.models.wan_vae_layers import Downsample, FrameAttention, ResidualBlock, RMSNorm, Upsample

RGB = 3

# Published statistics of the 16 latent channels of Wan 2.1.
WAN_2_1_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
WAN_2_1_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip


@dataclass(frozen=True)
class WanVAEConfig:
    """Widths are `base_dim * dim_mult`, from full resolution downwards; the decoder mirrors the encoder.

    Between two levels space halves; where `temporal_downsample` says so, time halves too.
    """

    base_dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    latents_mean: tuple[float, ...] = WAN_2_1_MEAN
    latents_std: tuple[float, ...] = WAN_2_1_STD

    def __post_init__(self) -> None:
        levels = len(self.dim_mult)
        require(self.base_dim > 0, "base_dim", "at least 1", self.base_dim)
        require(self.num_res_blocks > 0, "num_res_blocks", "at least 1", self.num_res_blocks)
        require(levels > 0, "dim_mult", "at least one level", self.dim_mult)
        halved = self.widths[1:]
        require(all(width % 2 == 0 for width in halved), "base_dim * dim_mult", "even below the first level", halved)
        given = len(self.temporal_downsample)
        require(given == levels - 1, "temporal_downsample", f"{levels - 1} entries, one per level change", given)
        for name in ("latents_mean", "latents_std"):
            given = len(getattr(self, name))
            require(given == self.z_dim, name, f"z_dim = {self.z_dim} entries", given)
        require(min(self.latents_std) > 0, "latents_std", "positive numbers", self.latents_std)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels per level, full resolution first."""
        return tuple(self.base_dim * mult for mult in self.dim_mult)

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent pixel along height and along width."""
        return 2 ** len(self.temporal_downsample)

    @property
    def temporal_factor(self) -> int:
        """Video frames per latent frame after the first."""
        return 2 ** sum(self.temporal_downsample)


class Encoder(nn.Module):
    """Video [B, 3, T, H, W] -> mean and log-variance [B, 2 z, T', h, w], before the last 1x1x1 convolution."""

    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv1 = CausalConv3d(RGB, widths[0], 3)
        self.downsamples = nn.ModuleList()
        for level, outputs in enumerate(widths):
            inputs = widths[level - 1] if level else widths[0]
            for block in range(config.num_res_blocks):
                self.downsamples.append(ResidualBlock(outputs if block else inputs, outputs))
            if level < len(widths) - 1:
                self.downsamples.append(Downsample(outputs, config.temporal_downsample[level]))
        self.middle = middle_layers(widths[-1])
        self.head = nn.ModuleDict({"0": RMSNorm(widths[-1]), "2": CausalConv3d(widths[-1], 2 * config.z_dim, 3)})

    def forward(self, video: Tensor, cache: FeatureCache) -> Tensor:
        """The next chunk [B, 3, T, H, W] of the stream that `cache` belongs to -> [B, 2 z, T', h, w]."""
        x = self.conv1(video, cache)
        for layer in (*self.downsamples, *self.middle):
            x = layer(x, cache)
        return self.head["2"](F.silu(self.head["0"](x), inplace=True), cache)


class Decoder(nn.Module):
    """Latents [B, z, T', h, w], after the first 1x1x1 convolution -> video [B, 3, T, H, W], not clamped."""

    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        widths = config.widths[::-1]
        temporal = config.temporal_downsample[::-1]
        self.conv1 = CausalConv3d(config.z_dim, widths[0], 3)
        self.middle = middle_layers(widths[0])
        self.upsamples = nn.ModuleList()
        for level, outputs in enumerate(widths):
            inputs = widths[level - 1] // 2 if level else widths[0]
            for block in range(config.num_res_blocks + 1):
                self.upsamples.append(ResidualBlock(outputs if block else inputs, outputs))
            if level < len(widths) - 1:
                self.upsamples.append(Upsample(outputs, temporal[level]))
        self.head = nn.ModuleDict({"0": RMSNorm(widths[-1]), "2": CausalConv3d(widths[-1], RGB, 3)})

    def forward(self, latents: Tensor, cache: FeatureCache) -> Tensor:
        """The next chunk [B, z, T', h, w] of the stream that `cache` belongs to -> [B, 3, T, H, W]."""
        x = self.conv1(latents, cache)
        for layer in (*self.middle, *self.upsamples):
            x = layer(x, cache)
        return self.head["2"](F.silu(self.head["0"](x), inplace=True), cache)


def middle_layers(width: int) -> nn.ModuleList:
    """The layers at the lowest resolution."""
    return nn.ModuleList([ResidualBlock(width, width), FrameAttention(width), ResidualBlock(width, width)])


class WanVAE(nn.Module):
    """Encoder and decoder of Wan 2.1. It computes in the dtype of its parameters and casts its input to that.

    `encode` and `decode` take whole clips and are differentiable; `stream` and `stream_encoder` take a clip piece by
    piece.
    """

    def __init__(self, config: WanVAEConfig = WanVAEConfig()) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.conv1 = CausalConv3d(2 * config.z_dim, 2 * config.z_dim, 1)
        self.conv2 = CausalConv3d(config.z_dim, config.z_dim, 1)
        self.decoder = Decoder(config)
        mean = torch.tensor(config.latents_mean).view(-1, 1, 1, 1)
        std = torch.tensor(config.latents_std).view(-1, 1, 1, 1)
        self.register_buffer("latents_mean", mean, persistent=False)
        self.register_buffer("latents_std", std, persistent=False)
        name_cached_layers(self)

    @property
    def latent_channels(self) -> int:
        """Channels z of the latents."""
        return self.config.z_dim

    def encode(
        self, video: Tensor, sample: bool = False, generator: torch.Generator | None = None, chunk: int = 1
    ) -> Tensor:
        """Video [B, 3, 1 + 4 n, H, W] in -1..1 -> normalised latents [B, z, 1 + n, H / 8, W / 8].

        Args:
            video: any floating-point dtype; H and W multiples of 8.
            sample: draw from the posterior instead of taking its mean.
            generator: of the draw.
            chunk: latent frames computed at once after the first; it changes speed and memory, not the result.
        Raises:
            ValueError: another shape or dtype.
        """
        self._check_video(video)
        factor, length = self.config.temporal_factor, video.shape[2]
        require(length % factor == 1 % factor, "video", f"1 + {factor} n video frames", length)
        cache = FeatureCache()
        pieces = [self._encode_chunk(video[:, :, :1], cache)]
        pieces += [self._encode_chunk(piece, cache) for piece in _split(video[:, :, 1:], chunk * factor)]
        mean, log_variance = torch.cat(pieces, dim=2).chunk(2, dim=1)
        if sample:
            noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
            mean = mean + (0.5 * log_variance.clamp(-30, 20)).exp() * noise
        return self._normalise(mean)

    def decode(self, latents: Tensor, chunk: int = 1) -> Tensor:
        """Normalised latents [B, z, 1 + n, h, w] -> video [B, 3, 1 + 4 n, 8 h, 8 w], clamped to -1..1.

        `chunk`: latent frames computed at once after the first; it changes speed and memory, not the result.
        Raises ValueError for another shape or dtype.
        """
        self._check_latents(latents)
        cache = FeatureCache()
        pieces = [self._decode_chunk(latents[:, :, :1], cache)]
        pieces += [self._decode_chunk(piece, cache) for piece in _split(latents[:, :, 1:], chunk)]
        return torch.cat(pieces, dim=2)

    def stream(self) -> DecoderStream:
        """A streaming decoder at the start of a clip."""
        return DecoderStream(self)

    def stream_encoder(self) -> EncoderStream:
        """A streaming encoder at the start of a clip."""
        return EncoderStream(self)

    def _encode_chunk(self, video: Tensor, cache: FeatureCache) -> Tensor:
        video = video.to(self.conv1.weight.dtype).contiguous(memory_format=torch.channels_last_3d)
        return self.conv1(self.encoder(video, cache), cache)

    def _decode_chunk(self, latents: Tensor, cache: FeatureCache) -> Tensor:
        latents = latents.to(self.conv2.weight.dtype) * self.latents_std + self.latents_mean
        latents = latents.contiguous(memory_format=torch.channels_last_3d)
        return self.decoder(self.conv2(latents, cache), cache).clamp(-1, 1)

    def _normalise(self, latents: Tensor) -> Tensor:
        return (latents - self.latents_mean) / self.latents_std

    def _check_video(self, video: Tensor) -> None:
        require_shape("video", video, "B", RGB, "T", "H", "W")
        require(video.is_floating_point(), "video", "a floating-point dtype", video.dtype)
        factor, size = self.config.spatial_factor, tuple(video.shape[3:])
        require(min(video.shape) > 0, "video", "at least one element in every dimension", list(video.shape))
        require(all(n % factor == 0 for n in size), "video", f"height and width multiples of {factor}", size)

    def _check_latents(self, latents: Tensor) -> None:
        require_shape("latents", latents, "B", self.latent_channels, "T", "h", "w")
        require(latents.is_floating_point(), "latents", "a floating-point dtype", latents.dtype)
        require(min(latents.shape) > 0, "latents", "at least one element in every dimension", list(latents.shape))


AnyStream = TypeVar("AnyStream", bound="_Stream")


class _Stream:
    """The state of a clip between two chunks: the features that causal layers look back on, and the clip's size."""

    def __init__(self, vae: WanVAE) -> None:
        self.vae = vae
        self.reset()

    def reset(self) -> None:
        """Forget the clip: the next chunk is the first of another, of any size."""
        self._cache = FeatureCache()
        self._size: tuple[int, ...] | None = None

    def clone(self: AnyStream) -> AnyStream:
        """A stream that goes on from here on its own, bit for bit like this one."""
        other = type(self)(self.vae)
        other._cache, other._size = self._cache.clone(), self._size
        return other

    def _take(self, argument: str, chunk: Tensor, per_step: int) -> None:
        """Check that `chunk` [B, C, T, H, W] can follow: one frame, then multiples of `per_step`, all of one size."""
        length, size = chunk.shape[2], (chunk.shape[0], *chunk.shape[3:])
        if self._size is None:
            require(length == 1, argument, "exactly one frame in the first chunk of a stream", length)
            self._size = size
        require(size == self._size, argument, f"batch, height and width {self._size} as before", size)
        if len(self._cache):
            require(length % per_step == 0, argument, f"a multiple of {per_step} frames after the first", length)


class DecoderStream(_Stream):
    """Decodes latent frames as they come; the whole state is in this object."""

    @torch.no_grad()
    def decode(self, latents: Tensor, out: str = "float") -> Tensor:
        """The next normalised latents [B, z, t, h, w] -> their video frames [B, 3, F, 8 h, 8 w].

        The first chunk of a stream is one latent frame and gives F = 1; later ones give F = 4 t. `out`: "float" for
        -1..1 in the dtype of the VAE, "uint8" for 0..255 (rounded to nearest). In memory the colour of a pixel comes
        last, so `frames.permute(0, 2, 3, 4, 1)` is a view ready for an image encoder.
        Raises ValueError for another shape, dtype or size than the stream began with, and an unknown `out`.
        """
        require(out in ("float", "uint8"), "out", "'float' or 'uint8'", repr(out))
        self.vae._check_latents(latents)
        self._take("latents", latents, per_step=1)
        frames = self.vae._decode_chunk(latents, self._cache)
        return frames if out == "float" else frames.float().add(1).mul_(127.5).round_().to(torch.uint8)


class EncoderStream(_Stream):
    """Encodes video frames as they come; the whole state is in this object."""

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """The next video [B, 3, F, H, W] in -1..1 -> normalised latents [B, z, t, H / 8, W / 8], the posterior mean.

        The first chunk of a stream is one video frame and gives t = 1; later ones are F = 4 t.
        Raises ValueError for another shape, dtype or size than the stream began with.
        """
        self.vae._check_video(video)
        self._take("video", video, per_step=self.vae.config.temporal_factor)
        mean = self.vae._encode_chunk(video, self._cache).chunk(2, dim=1)[0]
        return self.vae._normalise(mean)


def _split(clip: Tensor, length: int) -> list[Tensor]:
    """[B, C, T, H, W] in pieces of `length` frames, the last possibly shorter; an empty clip has none."""
    require(length > 0, "chunk", "at least 1", length)
    return list(clip.split(length, dim=2)) if clip.shape[2] else []
