# SPDX-License-Identifier: Apache-2.0
"""Decoding with diffusers' `AutoencoderKLWan`, as it is or with its convolutions handed to oneDNN."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from torch import Tensor

from bench.harness.timing import Stream


def diffusers_vae(base_dim: int) -> AutoencoderKLWan:
    """Make the module with random weights, the same ones each time."""
    torch.manual_seed(0)
    return AutoencoderKLWan(base_dim=base_dim).eval().requires_grad_(False)


def diffusers_stream(vae: AutoencoderKLWan, latents: Tensor) -> Stream:
    """Steps of diffusers' own decoding loop over normalised latents [steps, z, h, w] -> video [1, 3, F, H, W]."""
    mean, std = (
        torch.tensor(numbers).to(latents).view(1, -1, 1, 1, 1)
        for numbers in (vae.config.latents_mean, vae.config.latents_std)
    )
    vae.clear_cache()
    features = vae._feat_map

    @torch.no_grad()
    def step(number: int) -> Tensor:
        x = vae.post_quant_conv(latents[number][None, :, None] * std + mean)
        return vae.decoder(x, feat_cache=features, feat_idx=[0]).clamp(-1, 1)

    return step


def with_onednn(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Hand every 3-D convolution of `vae` to oneDNN, with weights in its preferred memory format.

    Torch sends float32 conv3d to a slow path on the CPU; this shows the speed of diffusers without it.
    """
    for conv in vae.modules():
        if isinstance(conv, WanCausalConv3d):
            conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last_3d)
            conv.forward = partial(_convolve, conv)
    return vae


def _convolve(conv: WanCausalConv3d, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
    """`WanCausalConv3d.forward` on [B, C, T, H, W] without torch's choice of a backend, padding inside oneDNN."""
    pad_width, _, pad_height, _, pad_time, _ = conv._padding
    if cache_x is not None and pad_time:
        x = torch.cat([cache_x, x], dim=2)
        pad_time -= cache_x.shape[2]
    x = F.pad(x, (0, 0, 0, 0, pad_time, 0)) if pad_time else x
    x = x.contiguous(memory_format=torch.channels_last_3d)
    padding = [0, pad_height, pad_width]
    return torch.mkldnn_convolution(x, conv.weight, conv.bias, padding, conv.stride, conv.dilation, conv.groups)
