# SPDX-License-Identifier: Apache-2.0
"""Convolutions of a video decoder for one more latent frame of a stream, from its configuration alone.

Those of a VAE of this package are noted while it decodes on the meta device, which computes nothing. The light decoder
of the paper, which its time includes and this package does not have, is listed by hand (AAPT, arXiv 2506.09350,
appendix C: 64 to 512 channels, two residual blocks per scale; the rest is taken to be as in SeedVR's).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from aapt_fast.models.vae.layers import CausalConv3d
from aapt_fast.models.vae.mini import MiniVAE, MiniVAEConfig
from aapt_fast.models.vae.wan import RGB, WanVAE, WanVAEConfig
from aapt_fast.models.vae.wan_layers import FrameAttention

VAEConfig = WanVAEConfig | MiniVAEConfig
LIGHT_WIDTHS, LIGHT_BLOCKS, LIGHT_LATENTS = (512, 256, 128, 64), 2, 16
"""Channels of the paper's light decoder, from the latents up."""


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


def make_vae(config: VAEConfig) -> WanVAE | MiniVAE:
    """A VAE with random weights."""
    return WanVAE(config) if isinstance(config, WanVAEConfig) else MiniVAE(config)


def decoder_layers(config: VAEConfig, height: int, width: int) -> list[Layer]:
    """List the layers of the decoder of a VAE, for latents of height x width."""
    layers: list[Layer] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if isinstance(module, CausalConv3d | nn.Conv2d):
            frames = output.shape[2] if output.dim() == 5 else len(output)
            taps, size = (1, *module.kernel_size)[-3:], (frames, *output.shape[-2:])
            layers.append(Layer(module.in_channels, module.out_channels, taps, size))
        elif isinstance(module, FrameAttention):
            layers.extend(_frame_attention(output.shape[1], tuple(output.shape[2:])))

    with torch.device("meta"):
        vae = make_vae(config).to("meta")
        latents = torch.zeros(1, vae.latent_channels, 1, height, width)
    stream = vae.stream()
    stream.decode(latents)
    for module in vae.modules():
        module.register_forward_hook(note)
    stream.decode(latents)
    return layers


def _frame_attention(width: int, size: tuple[int, int, int]) -> list[Layer]:
    return [
        Layer(width, 3 * width, (1, 1, 1), size),
        Layer(width, width, (1, 1, 1), size, attention=True),
        Layer(width, width, (1, 1, 1), size),
    ]


def _residual_blocks(count: int, inputs: int, outputs: int, size: tuple[int, int, int]) -> list[Layer]:
    """List `count` blocks of two 3x3x3 convolutions; the first changes the width, with a shortcut."""
    layers = []
    for _ in range(count):
        layers += [Layer(inputs, outputs, (3, 3, 3), size), Layer(outputs, outputs, (3, 3, 3), size)]
        if inputs != outputs:
            layers.append(Layer(inputs, outputs, (1, 1, 1), size))
        inputs = outputs
    return layers


def light_decoder(height: int, width: int) -> list[Layer]:
    """List the layers of the paper's light decoder, for latents of height x width."""
    inputs, frames, size = LIGHT_WIDTHS[0], 1, (1, height, width)
    block = _residual_blocks(1, inputs, inputs, size)
    layers = [Layer(LIGHT_LATENTS, inputs, (3, 3, 3), size), *block, *_frame_attention(inputs, size), *block]
    for level, outputs in enumerate(LIGHT_WIDTHS):
        layers += _residual_blocks(LIGHT_BLOCKS, inputs, outputs, size)
        inputs = outputs
        if level < len(LIGHT_WIDTHS) - 1:
            doubles_time = 2 if level < 2 else 1
            layers.append(Layer(outputs, 4 * doubles_time * outputs, (1, 1, 1), size))
            frames *= doubles_time
            size = (frames, 2 * size[1], 2 * size[2])
            layers.append(Layer(outputs, outputs, (3, 3, 3), size))
    return [*layers, Layer(inputs, RGB, (3, 3, 3), size)]
