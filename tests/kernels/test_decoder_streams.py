# SPDX-License-Identifier: Apache-2.0
"""Streams of whole decoders, and pictures through whole encoders, narrow ones, by `ring_conv3d` and `norm_silu`."""

from __future__ import annotations

import copy

import pytest
import torch

from aapt_fast.models.vae.aapt import AAPTVAE, AAPTVAEConfig
from aapt_fast.models.vae.ring_cache import RingCache
from aapt_fast.models.vae.wan import WanVAE, WanVAEConfig
from aapt_fast.ops.calls import observe_ops

NARROW = {"encoder_widths": (16, 16), "decoder_widths": (16, 16), "decoder_blocks": 1}
VAES = {
    "light": lambda: AAPTVAE(AAPTVAEConfig(**NARROW, temporal_downsample=(True,), norm_num_groups=4)),
    "wan 2.1": lambda: WanVAE(WanVAEConfig(16, dim_mult=(1, 2), num_res_blocks=1, temporal_downsample=(True,))),
    "wan 2.2": lambda: WanVAE(
        WanVAEConfig(16, dim_mult=(1, 1), num_res_blocks=1, temporal_downsample=(True,), is_residual=True, patch_size=2)
    ),
}


@pytest.mark.parametrize("name", VAES)
def test_a_stream(name, target):
    """Four steps, so that every ring has been written around; against float32 without kernels."""
    torch.manual_seed(5)
    vae = VAES[name]().eval().requires_grad_(False)
    half, plain = copy.deepcopy(vae).to(target.device, torch.bfloat16), vae.stream()
    stream = half.stream()
    for frame in torch.randn(1, 16, 4, 2, 1).split(1, 2):
        expected = plain.decode(frame)
        with target.kernels(), observe_ops() as calls:
            video = stream.decode(frame.to(target.device)).float().cpu()
        ran = calls.what_ran()
        assert ran.keys() == {"ring_conv3d", "norm_silu"} and all("/" in kernel for kernel in ran.values()), ran
        assert torch.linalg.vector_norm(video - expected) < 0.03 * torch.linalg.vector_norm(expected)
    side = 2 * vae.spatial_factor
    assert isinstance(stream._cache, RingCache) and video.shape == (1, 3, 2, side, side // 2)


@pytest.mark.parametrize("name", VAES)
def test_a_picture(name, target):
    """Against float32 without kernels. The three colours are padded to the channels that kernels take."""
    torch.manual_seed(5)
    vae = VAES[name]().eval().requires_grad_(False)
    picture = torch.rand(1, 3, 1, 2 * vae.spatial_factor, vae.spatial_factor) * 2 - 1
    expected = vae.encode(picture)
    half = vae.to(target.device, torch.bfloat16)
    with target.kernels(), observe_ops() as calls:
        latents = half.encode(picture.to(target.device)).float().cpu()
    ran = calls.what_ran()
    assert ran.keys() == {"ring_conv3d", "norm_silu"} and all("/" in kernel for kernel in ran.values()), ran
    assert torch.linalg.vector_norm(latents - expected) < 0.03 * torch.linalg.vector_norm(expected)
