# SPDX-License-Identifier: Apache-2.0
"""The causal video VAE of AAPT (arXiv 2506.09350, appendix C), with its light decoder and with the original one.

The paper prints the widths and the number of blocks; the layers are those of the open VAE of the same family, of
SeedVR (ByteDance-Seed/SeedVR, models/video_vae_v3), which has the paper's encoder and original decoder. Parameters have
the names of its checkpoint `ema_vae.pth`, which `load_vae` reads. No weights of the light decoder are public.

Time goes 1 + 4 n video frames <-> 1 + n latent frames, space 8 x 8 pixels <-> one latent pixel. The first latent frame
stands for one video frame, every later one for four. Latents are scaled to a standard deviation near one.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from aapt_fast.errors import require, require_shape
from aapt_fast.models.vae.aapt_layers import DownBlock, FrameNorm, MidBlock, UpBlock, convolution
from aapt_fast.models.vae.layers import name_cached_layers
from aapt_fast.models.vae.memory import DecoderMemory, EncoderMemory, Frames
from aapt_fast.models.vae.packed_weights import PackedWeights
from aapt_fast.models.vae.picture_memory import encoder_memory
from aapt_fast.models.vae.video_stream import ChunkedVAE

RGB = 3


@dataclass(frozen=True)
class AAPTVAEConfig:
    """Widths from full resolution downwards; between two levels space halves.

    Where `temporal_downsample` is True, time halves too. `scaling_factor` is that of latents: mean of the posterior
    times factor. The default decoder is the paper's light one.
    """

    encoder_widths: tuple[int, ...] = (128, 256, 512, 512)
    encoder_blocks: int = 2
    decoder_widths: tuple[int, ...] = (64, 128, 256, 512)
    decoder_blocks: int = 2
    latent_channels: int = 16
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    norm_num_groups: int = 32
    scaling_factor: float = 0.9152

    def __post_init__(self) -> None:
        for name in ("encoder_blocks", "decoder_blocks", "latent_channels", "norm_num_groups"):
            require(getattr(self, name) > 0, name, "at least 1", getattr(self, name))
        require(self.scaling_factor > 0, "scaling_factor", "a positive number", self.scaling_factor)
        levels, groups = len(self.temporal_downsample) + 1, self.norm_num_groups
        for name in ("encoder_widths", "decoder_widths"):
            widths = getattr(self, name)
            require(len(widths) == levels, name, f"{levels} entries, one more than temporal_downsample", widths)
            fits = all(width > 0 and width % groups == 0 for width in widths)
            require(fits, name, f"multiples of norm_num_groups = {groups}", widths)

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent pixel along height and along width."""
        return 2 ** len(self.temporal_downsample)

    @property
    def temporal_factor(self) -> int:
        """Video frames per latent frame after the first."""
        return 2 ** sum(self.temporal_downsample)


LIGHT = AAPTVAEConfig()
"""With the light decoder, which AAPT trained for real time."""
ORIGINAL = AAPTVAEConfig(decoder_widths=(128, 256, 512, 512), decoder_blocks=3)
"""With the original decoder, which SeedVR has published."""


class Encoder(nn.Module):
    """Video [B, 3, T, H, W] -> mean and log-variance [B, 2 z, T', h, w]."""

    def __init__(self, config: AAPTVAEConfig) -> None:
        super().__init__()
        widths, groups, last = config.encoder_widths, config.norm_num_groups, len(config.encoder_widths) - 1
        self.conv_in = convolution(RGB, widths[0])
        self.down_blocks = nn.ModuleList(
            DownBlock(
                pair, config.encoder_blocks, groups, level < last, level < last and config.temporal_downsample[level]
            )
            for level, pair in enumerate(pairwise((widths[0], *widths)))
        )
        self.mid_block = MidBlock(widths[-1], groups)
        self.conv_norm_out = FrameNorm(groups, widths[-1])
        self.conv_out = convolution(widths[-1], 2 * config.latent_channels)

    def forward(self, video: Tensor, memory: EncoderMemory) -> Tensor:
        """The next chunk [B, 3, T, H, W] of the stream that `memory` belongs to -> [B, 2 z, T', h, w]."""
        x = memory.conv(video, self.conv_in)
        for block in self.down_blocks:
            x = block(x, memory)
        return memory.norm_conv(self.mid_block(x, memory), self.conv_norm_out, self.conv_out)


class Decoder(nn.Module):
    """Latents [B, z, T', h, w] -> video [B, 3, T, H, W], not clamped."""

    def __init__(self, config: AAPTVAEConfig) -> None:
        super().__init__()
        widths, groups, last = config.decoder_widths[::-1], config.norm_num_groups, len(config.decoder_widths) - 1
        self.conv_in = convolution(config.latent_channels, widths[0])
        self.mid_block = MidBlock(widths[0], groups)
        self.up_blocks = nn.ModuleList(
            UpBlock(
                pair,
                config.decoder_blocks,
                groups,
                level < last,
                level < last and config.temporal_downsample[-1 - level],
            )
            for level, pair in enumerate(pairwise((widths[0], *widths)))
        )
        self.conv_norm_out = FrameNorm(groups, widths[-1])
        self.conv_out = convolution(widths[-1], RGB)

    def forward(self, latents: Frames, memory: DecoderMemory) -> Frames:
        """The next chunk [B, z, T', h, w] of the stream that `memory` belongs to -> [B, 3, T, H, W]."""
        x = self.mid_block(memory.conv(latents, self.conv_in), memory)
        for block in self.up_blocks:
            x = block(x, memory)
        return memory.norm_conv(x, self.conv_norm_out, self.conv_out, last_use=True)


class AAPTVAE(ChunkedVAE):
    """Encoder and decoder. It computes in the dtype of its parameters and casts its input to that.

    `encode` and `decode` take whole clips and are differentiable; `stream` decodes a clip piece by piece.
    """

    def __init__(self, config: AAPTVAEConfig = LIGHT) -> None:
        super().__init__()
        self.config = config
        self.latent_channels, self.spatial_factor = config.latent_channels, config.spatial_factor
        self.encoder, self.decoder, self.packed_weights = Encoder(config), Decoder(config), PackedWeights()
        name_cached_layers(self)

    def encode(self, video: Tensor) -> Tensor:
        """Video [B, 3, 1 + 4 n, H, W] in -1..1 -> scaled latents [B, z, 1 + n, h, w], the mean of the posterior.

        `video` has any floating-point dtype, H and W are multiples of 8. Raises ValueError for another shape or dtype.
        """
        self._check_video(video)
        factor, memory = self.config.temporal_factor, encoder_memory(self, video)
        chunks = video.to(self.encoder.conv_in.weight.dtype).contiguous(memory_format=torch.channels_last_3d)
        sizes = [1] + [factor] * ((video.shape[2] - 1) // factor)
        pieces = [self.encoder(chunk, memory) for chunk in chunks.split(sizes, dim=2)]
        return torch.cat(pieces, dim=2)[:, : self.latent_channels] * self.config.scaling_factor

    def decode_chunk(self, latents: Tensor, memory: DecoderMemory, out: str = "float") -> Tensor:
        """The next scaled latents [B, z, n, h, w] of the stream of `memory` -> video [B, 3, F, H, W] in -1..1.

        F = 1 for the first chunk, which has n = 1, then 4 n. With `out` "uint8", colours in 0..255.
        """
        dtype = self.decoder.conv_in.weight.dtype
        wide = latents.to(torch.promote_types(dtype, torch.float32)) / self.config.scaling_factor
        frames = wide.to(dtype).contiguous(memory_format=torch.channels_last_3d)
        video = memory.output(self.run_layers(frames, memory), out)
        return video.clamp(-1, 1) if out == "float" else video

    def run_layers(self, latents: Tensor, memory: DecoderMemory) -> Frames:
        """The next chunk [B, z, n, h, w], in the dtype of the weights, through all layers -> [B, 3, F, H, W]."""
        return self.decoder(latents, memory)

    def _check_video(self, video: Tensor) -> None:
        require_shape("video", video, "B", RGB, "1 + 4 n", "H", "W")
        require(video.is_floating_point(), "video", "a floating-point dtype", video.dtype)
        require(min(video.shape) > 0, "video", "at least one element in every dimension", list(video.shape))
        factor, length, size = self.config.temporal_factor, video.shape[2], tuple(video.shape[3:])
        require(length % factor == 1 % factor, "video", f"1 + {factor} n video frames", length)
        multiple = self.spatial_factor
        require(all(n % multiple == 0 for n in size), "video", f"height and width multiples of {multiple}", size)
