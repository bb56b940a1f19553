# SPDX-License-Identifier: Apache-2.0
"""Whole video decoders on the kernels of ring_conv3d and norm_silu, frame by frame, against the float32 decoders."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch

from aapt_fast.models.vae.aapt import AAPTVAE, AAPTVAEConfig
from aapt_fast.models.vae.ring_cache import RingCache
from aapt_fast.models.vae.wan import WanVAE, WanVAEConfig
from aapt_fast.ops.calls import observe_ops
from aapt_fast.testing.targets import Target

WIDTHS = (16, 32, 32, 48)
VAES = {
    "light": partial(
        AAPTVAE,
        AAPTVAEConfig(
            encoder_widths=WIDTHS, decoder_widths=WIDTHS, encoder_blocks=1, decoder_blocks=1, norm_num_groups=4
        ),
    ),
    "wan 2.1": partial(WanVAE, WanVAEConfig(base_dim=16, dim_mult=(1, 2, 2, 4), num_res_blocks=1)),
    "wan 2.2": partial(
        WanVAE,
        WanVAEConfig(base_dim=16, dim_mult=(1, 1, 2, 2), num_res_blocks=1, is_residual=True, patch_size=2),
    ),
}


@pytest.mark.parametrize("name", VAES)
def test_a_stream_on_kernels_is_the_float32_decoder(target: Target, name: str) -> None:
    """Every convolution and every norm before one runs as a kernel, through first frame and later ones.

    Rounding is that of the same layers in torch, within half as much again.
    """
    torch.manual_seed(4)
    exact = VAES[name]().eval().requires_grad_(False)
    vae = copy.deepcopy(exact).to(target.device, torch.bfloat16)
    latents = torch.randn(2, 1, 16, 1, 2, 3)
    wide, composed, kernels = exact.stream(), copy.deepcopy(exact).to(torch.bfloat16).stream(), vae.stream()
    for frame in latents:
        expected, torchs = wide.decode(frame), composed.decode(frame).float()
        with target.kernels("ring_conv3d/portable", "norm_silu/portable"), observe_ops() as calls:
            video = kernels.decode(frame.to(target.device)).float().cpu()
        assert isinstance(kernels._cache, RingCache)
        assert {op: set(calls.counts[op]) for op in ("ring_conv3d", "norm_silu")} == {
            "ring_conv3d": {"ring_conv3d/portable"},
            "norm_silu": {"norm_silu/portable"},
        }
        error, unavoidable = ((each - expected).norm() / expected.norm() for each in (video, torchs))
        assert error <= 1.5 * unavoidable
