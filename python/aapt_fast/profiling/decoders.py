# SPDX-License-Identifier: Apache-2.0
"""Convolutions of a video decoder for one more latent frame of a stream, from its configuration alone.

They are noted while the VAE decodes on the meta device, which computes nothing.
"""

from __future__ import annotations

from collections import Counter
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


def layer_rows(layers: list[Layer], matmul: float, copy: float, itemsize: int = 2) -> list[dict[str, Any]]:
    """The layers of one step on a GPU with these rates in FLOP/s and bytes/s; equal layers share a row. Ready for JSON.

    A layer's ceiling is the longer of its FLOP at `matmul` and its bytes at `copy`, `share` its part of the sum of all.
    """
    rows: list[dict[str, Any]] = []
    for layer, count in Counter(layers).items():
        work, moved = count * layer.flops, float(count * layer.elements * itemsize)
        rows.append(
            {
                "layer": "attention" if layer.attention else "x".join(map(str, layer.taps)),
                "channels": f"{layer.inputs} -> {layer.outputs}",
                "frames": layer.size[0],
                "size": f"{layer.size[2]}x{layer.size[1]}",
                "count": count,
                "gflop": work / 1e9,
                "mb": moved / 1e6,
                "limit": "FLOP" if work / matmul > moved / copy else "bytes",
                "ceiling_ms": 1e3 * max(work / matmul, moved / copy),
            }
        )
    whole = sum(row["ceiling_ms"] for row in rows)
    return [row | {"share": row["ceiling_ms"] / whole} for row in rows]


def table_of(rows: list[dict[str, Any]]) -> list[str]:
    """Lines for a person: one per row of `layer_rows`, and the sum."""
    head = f"{'layer':>9} {'channels':>13} {'frames':>6} {'size':>9} {'times':>5}"
    lines = [f"{head} {'GFLOP':>8} {'MB':>8} {'share':>6} limit"]
    for row in rows:
        where = f"{row['layer']:>9} {row['channels']:>13} {row['frames']:6} {row['size']:>9} {row['count']:5}"
        lines.append(f"{where} {row['gflop']:8.1f} {row['mb']:8.1f} {100 * row['share']:5.1f}% {row['limit']}")
    total = {key: sum(row[key] for row in rows) for key in ("gflop", "mb", "ceiling_ms")}
    return [*lines, f"{'sum':>46} {total['gflop']:8.1f} {total['mb']:8.1f} {total['ceiling_ms']:6.2f} ms"]
