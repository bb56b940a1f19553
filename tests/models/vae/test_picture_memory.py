# SPDX-License-Identifier: Apache-2.0
"""Encoders of one picture by the ops of the decoders against the same encoders with a `FeatureCache`."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from aapt_fast.models.vae import picture_memory
from aapt_fast.models.vae.aapt import AAPTVAE, AAPTVAEConfig
from aapt_fast.models.vae.feature_cache import FeatureCache
from aapt_fast.models.vae.picture_memory import PictureMemory, encoder_memory, weight_for_first_frame
from aapt_fast.models.vae.wan import WanVAE, WanVAEConfig
from aapt_fast.models.vae.wan_layers import Halve
from aapt_fast.ops.calls import observe_ops
from aapt_fast.testing.compare import assert_near

WIDTHS = (4, 8, 8, 12)
VAES = {
    "light": partial(AAPTVAE, AAPTVAEConfig(encoder_widths=WIDTHS, decoder_widths=WIDTHS, norm_num_groups=4)),
    "wan 2.1": partial(WanVAE, WanVAEConfig(base_dim=4, num_res_blocks=1)),
    "wan 2.2": partial(
        WanVAE, WanVAEConfig(base_dim=4, decoder_base_dim=6, num_res_blocks=1, is_residual=True, patch_size=2)
    ),
}


@pytest.fixture(params=VAES)
def vae(request) -> AAPTVAE | WanVAE:
    torch.manual_seed(4)
    return VAES[request.param]().eval().requires_grad_(False)


@pytest.fixture
def kernels_everywhere(monkeypatch) -> None:
    monkeypatch.setattr(picture_memory, "kernels_run", lambda device, dtype: True)


def pictures(vae: AAPTVAE | WanVAE, count: int = 2) -> torch.Tensor:
    side = vae.spatial_factor
    return torch.rand(count, 3, 1, 2 * side, 3 * side) * 2 - 1


def test_pictures_by_both_ops(vae, monkeypatch):
    video = pictures(vae)
    expected = vae.encode(video)
    monkeypatch.setattr(picture_memory, "kernels_run", lambda device, dtype: dtype == torch.float32)
    with observe_ops() as calls:
        found = vae.encode(video)
    assert set(calls.what_ran()) == {"ring_conv3d", "norm_silu"}
    assert_near(found, expected, 5e-5)
    assert expected.std() > 0.05 and found.stride() == expected.stride()


def test_half_precision(vae, kernels_everywhere):
    video = pictures(vae)
    expected = vae.encode(video.double())
    found = vae.to(torch.bfloat16).encode(video)
    assert found.dtype == torch.bfloat16
    assert torch.linalg.vector_norm(found - expected) < 0.05 * torch.linalg.vector_norm(expected)


@pytest.mark.parametrize("size", [(2, 2), (4, 6), (5, 7)])
def test_a_stride_of_two_is_every_second_pixel(size):
    layer = Halve(3).requires_grad_(False)
    x = torch.randn(2, 3, 1, *size)
    frames = F.pad(x[:, :, 0], (0, 1, 0, 1))
    expected = F.conv2d(frames, layer[1].weight, layer[1].bias, stride=2)
    assert_near(layer(x)[:, :, 0], expected, 1e-6)
    assert_near(PictureMemory().halve(x, layer)[:, :, 0], expected, 1e-5)


def test_the_past_of_a_first_frame_is_in_its_weight(vae):
    """The weight of one tap gives what all of them give with zeros, or copies, before the frame."""
    conv = vae.encoder.mid_block.resnets[0].conv1 if isinstance(vae, AAPTVAE) else vae.encoder.conv1
    x = torch.randn(1, conv.in_channels, 1, 3, 4)
    weight = weight_for_first_frame(conv)
    assert weight.shape[2] == 1
    assert_near(F.conv2d(x[:, :, 0], weight[:, :, 0], conv.bias, padding=1), conv(x, FeatureCache())[:, :, 0], 1e-5)


def test_what_takes_the_kernels(vae, kernels_everywhere):
    one, five = torch.zeros(1, 3, 1, 32, 32), torch.zeros(1, 3, 5, 32, 32)
    assert isinstance(encoder_memory(vae, one), PictureMemory)
    assert isinstance(encoder_memory(vae, five), FeatureCache)
    with torch.autocast("cpu", torch.bfloat16):
        assert isinstance(encoder_memory(vae, one), FeatureCache)
    assert isinstance(encoder_memory(vae, one.clone().requires_grad_()), FeatureCache)
    vae.requires_grad_()
    assert isinstance(encoder_memory(vae, one), FeatureCache)
    with torch.no_grad():
        assert isinstance(encoder_memory(vae, one), PictureMemory)


def test_kernels_that_do_not_run_take_nothing(vae, monkeypatch):
    monkeypatch.setattr(picture_memory, "kernels_run", lambda device, dtype: False)
    assert isinstance(encoder_memory(vae, torch.zeros(1, 3, 1, 32, 32)), FeatureCache)
