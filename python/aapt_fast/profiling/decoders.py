# SPDX-License-Identifier: Apache-2.0
"""Convolutions of a video decoder for one more latent frame of a stream, from its configuration alone.

They are noted while the VAE decodes on the meta device, which computes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from aapt_fast.models.vae import aapt_layers, wan_layers
from aapt_fast.models.vae.aapt import AAPTVAE, LIGHT, AAPTVAEConfig
from aapt_fast.models.vae.layers import CausalConv3d
from aapt_fast.models.vae.mini import MiniVAE, MiniVAEConfig
from aapt_fast.models.vae.wan import WAN_2_2, WanVAE, WanVAEConfig

VAEConfig = WanVAEConfig | MiniVAEConfig | AAPTVAEConfig
DECODERS: dict[str, VAEConfig] = {"light": LIGHT, "wan2.1": WanVAEConfig(), "wan2.2": WAN_2_2}
"""Decoders by the names that benches take: AAPT's light one, and those of Wan."""


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


def make_vae(config: VAEConfig) -> WanVAE | MiniVAE | AAPTVAE:
    """A VAE with random weights."""
    if isinstance(config, AAPTVAEConfig):
        return AAPTVAE(config)
    return WanVAE(config) if isinstance(config, WanVAEConfig) else MiniVAE(config)


def decoder_layers(config: VAEConfig, height: int, width: int) -> list[Layer]:
    """List the layers of the decoder of a VAE, for latents of height x width."""
    layers: list[Layer] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if isinstance(module, CausalConv3d | nn.Conv2d):
            frames = output.shape[2] if output.dim() == 5 else len(output)
            taps, size = (1, *module.kernel_size)[-3:], (frames, *output.shape[-2:])
            layers.append(Layer(module.in_channels, module.out_channels, taps, size))
        elif isinstance(module, aapt_layers.FrameAttention | wan_layers.FrameAttention):
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
