# SPDX-License-Identifier: Apache-2.0
"""diffusers' VAE with random weights: the oracle for ours."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import AutoencoderKLWan

from aapt_fast.models.vae.wan import WanVAEConfig

VIDEO_SCALE = 0.3  # with it, the videos of random weights stay within -1..1


@pytest.fixture(scope="session")
def oracle() -> Callable[[WanVAEConfig], AutoencoderKLWan]:
    """From a configuration to diffusers' model of it."""

    def build(config: WanVAEConfig) -> AutoencoderKLWan:
        """diffusers' model with random weights and gains, scaled so that its video fills -1..1 without clipping."""
        vae = AutoencoderKLWan(
            base_dim=config.base_dim,
            z_dim=config.z_dim,
            dim_mult=list(config.dim_mult),
            num_res_blocks=config.num_res_blocks,
            temperal_downsample=list(config.temporal_downsample),
            latents_mean=list(config.latents_mean),
            latents_std=list(config.latents_std),
            decoder_base_dim=config.decoder_base_dim,
            is_residual=config.is_residual,
            in_channels=3 * config.patch_size**2,
            out_channels=3 * config.patch_size**2,
            patch_size=None if config.patch_size == 1 else config.patch_size,
        )
        for name, parameter in vae.named_parameters():
            if name.endswith("gamma"):
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
        vae.decoder.conv_out.weight.data *= VIDEO_SCALE
        return vae.eval().requires_grad_(False)

    return build
