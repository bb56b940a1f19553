# SPDX-License-Identifier: Apache-2.0
"""Convolutions of a video decoder for one more latent frame of a stream, from its configuration alone.

Three decoders: Wan 2.1 (`models/vae/wan.py`), the small one of this package (`models/vae/mini.py`), and the light one
of the paper, which its time includes and this package does not have (AAPT, arXiv 2506.09350, appendix C: 64 to 512
channels, two residual blocks per scale; the rest is taken to be as in SeedVR's).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from aapt_fast.models.vae.mini import MiniVAEConfig
from aapt_fast.models.vae.wan import WanVAEConfig

RGB = 3


@dataclass(frozen=True)
class Layer:
    """A convolution, or attention inside a frame: its work and the elements it reads and writes.

    `size` is (frames, height, width) of the output; `taps` along the same dimensions.
    """

    inputs: int
    outputs: int
    taps: tuple[int, int, int]
    size: tuple[int, int, int]
    attention: bool = False

    @property
    def flops(self) -> float:
        """FLOP; a multiplication and an addition count as two."""
        frames, height, width = self.size
        if self.attention:
            return 4.0 * frames * (height * width) ** 2 * self.inputs
        return 2.0 * prod(self.taps) * self.inputs * self.outputs * prod(self.size)

    @property
    def elements(self) -> int:
        """Elements read and written: input and output once, weights, and a causal convolution's past frames."""
        _, height, width = self.size
        weights = 0 if self.attention else prod(self.taps) * self.inputs * self.outputs
        past = (self.taps[0] - 1) * height * width * self.inputs
        return prod(self.size) * (self.inputs + self.outputs) + weights + past


def _residual_blocks(
    count: int, inputs: int, outputs: int, size: tuple[int, int, int], times: tuple[int, int] = (3, 3)
) -> list[Layer]:
    """List `count` blocks of two 3x3 convolutions over `times` frames; the first changes the width, with a shortcut."""
    layers = []
    for _ in range(count):
        layers += [Layer(inputs, outputs, (times[0], 3, 3), size), Layer(outputs, outputs, (times[1], 3, 3), size)]
        if inputs != outputs:
            layers.append(Layer(inputs, outputs, (1, 1, 1), size))
        inputs = outputs
    return layers


def _middle(width: int, size: tuple[int, int, int]) -> list[Layer]:
    """Two residual blocks around single-head attention inside the frame."""
    block = _residual_blocks(1, width, width, size)
    attention = [
        Layer(width, 3 * width, (1, 1, 1), size),
        Layer(width, width, (1, 1, 1), size, attention=True),
        Layer(width, width, (1, 1, 1), size),
    ]
    return [*block, *attention, *block]


def wan_decoder(config: WanVAEConfig, height: int, width: int) -> list[Layer]:
    """List the layers of the Wan 2.1 VAE's decoder, for latents of height x width."""
    widths, temporal = config.widths[::-1], config.temporal_downsample[::-1]
    frames, size = 1, (1, height, width)
    layers = [Layer(config.z_dim, config.z_dim, (1, 1, 1), size), Layer(config.z_dim, widths[0], (3, 3, 3), size)]
    layers += _middle(widths[0], size)
    inputs = widths[0]
    for level, outputs in enumerate(widths):
        layers += _residual_blocks(config.num_res_blocks + 1, inputs, outputs, size)
        if level < len(temporal):
            if temporal[level]:
                layers.append(Layer(outputs, 2 * outputs, (3, 1, 1), size))
                frames *= 2
            size = (frames, 2 * size[1], 2 * size[2])
            layers.append(Layer(outputs, outputs // 2, (1, 3, 3), size))
            inputs = outputs // 2
    return [*layers, Layer(widths[-1], RGB, (3, 3, 3), size)]


def light_decoder(
    height: int, width: int, widths: tuple[int, ...] = (512, 256, 128, 64), blocks: int = 2, latents: int = 16
) -> list[Layer]:
    """List the layers of the paper's light decoder, for latents of height x width; `widths` from the latents up."""
    frames, size = 1, (1, height, width)
    layers = [Layer(latents, widths[0], (3, 3, 3), size), *_middle(widths[0], size)]
    inputs = widths[0]
    for level, outputs in enumerate(widths):
        layers += _residual_blocks(blocks, inputs, outputs, size)
        inputs = outputs
        if level < len(widths) - 1:
            doubles_time = 2 if level < 2 else 1
            layers.append(Layer(outputs, 4 * doubles_time * outputs, (1, 1, 1), size))
            frames *= doubles_time
            size = (frames, 2 * size[1], 2 * size[2])
            layers.append(Layer(outputs, outputs, (3, 3, 3), size))
    return [*layers, Layer(widths[-1], RGB, (3, 3, 3), size)]


def mini_decoder(config: MiniVAEConfig, height: int, width: int) -> list[Layer]:
    """List the layers of the small VAE's decoder, for latents of height x width."""
    full, half, quarter = config.decoder_widths
    counts = config.decoder_blocks
    size = (1, height, width)
    layers = [
        Layer(config.latent_channels, RGB * 4 * 8 * 8, (1, 1, 1), size),  # the linear map
        Layer(config.latent_channels, quarter, (2, 3, 3), size),
        *_residual_blocks(counts[2], quarter, quarter, size, times=(2, 1)),
        Layer(quarter, 8 * half, (1, 1, 1), size),
    ]
    size = (2, 2 * height, 2 * width)
    layers += _residual_blocks(counts[1], half, half, size, times=(2, 1))
    layers.append(Layer(half, 8 * full, (1, 1, 1), size))
    size = (4, 4 * height, 4 * width)
    layers += _residual_blocks(counts[0], full, full, size, times=(1, 1))
    return [*layers, Layer(full, RGB * 4, (1, 3, 3), size)]
