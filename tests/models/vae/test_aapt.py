# SPDX-License-Identifier: Apache-2.0
"""The VAE of AAPT: frames against the image VAE that its family was made from, streams against whole clips."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from aapt_fast.models.vae import feature_cache
from aapt_fast.models.vae.aapt import AAPTVAE, LIGHT, ORIGINAL, AAPTVAEConfig
from aapt_fast.models.vae.aapt_layers import FrameNorm
from aapt_fast.models.vae.feature_cache import FeatureCache
from aapt_fast.testing.compare import assert_near

WIDTHS = (8, 16, 16, 24)
TINY = AAPTVAEConfig(encoder_widths=WIDTHS, decoder_widths=WIDTHS, norm_num_groups=4)
"""With the light decoder's two blocks per level."""
TOLERANCE = 5e-5


def tiny(config: AAPTVAEConfig = TINY, dtype: torch.dtype = torch.float32) -> AAPTVAE:
    torch.manual_seed(3)
    return AAPTVAE(config).to(dtype).eval().requires_grad_(False)


def inflated(image_vae: AutoencoderKL, config: AAPTVAEConfig) -> AAPTVAE:
    """The image VAE as a video VAE of one frame: the last time tap has its weights, a pixel becomes four equal ones."""
    vae, images = AAPTVAE(config).eval().requires_grad_(False), image_vae.state_dict()
    for name, value in vae.state_dict().items():
        if "upscale_conv.weight" in name:
            value.copy_(torch.eye(value.shape[1]).repeat(len(value) // value.shape[1], 1).view_as(value))
        elif "upscale_conv.bias" in name:
            value.zero_()
        elif value.dim() == 5:
            value.zero_()[:, :, -1] = images[name]
        else:
            value.copy_(images[name])
    return vae


@pytest.fixture(scope="module")
def image_vae() -> AutoencoderKL:
    torch.manual_seed(1)
    vae = AutoencoderKL(
        block_out_channels=WIDTHS,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=16,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return vae.eval().requires_grad_(False)


def test_a_frame_equals_that_of_the_image_vae(image_vae):
    vae = inflated(image_vae, dataclasses.replace(TINY, decoder_blocks=3))
    picture = torch.rand(2, 3, 16, 24) * 2 - 1
    latents = vae.encode(picture[:, :, None])
    expected = image_vae.encode(picture).latent_dist.mean
    assert_near(latents[:, :, 0] / 0.9152, expected, TOLERANCE)
    video = image_vae.decode(expected).sample
    assert video.std() > 0.05
    assert_near(vae.decode(latents)[:, :, 0], video.clamp(-1, 1), TOLERANCE)


def test_a_still_video_of_the_image_vae_stays_still(image_vae):
    """Only the present is seen, so every frame is decoded as the first."""
    vae = inflated(image_vae, dataclasses.replace(TINY, decoder_blocks=3))
    video = vae.decode(torch.randn(1, 16, 1, 2, 2).expand(-1, -1, 3, -1, -1))
    assert_near(video, video[:, :, :1].expand(-1, -1, 9, -1, -1), TOLERANCE)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.float64, 1e-13)], ids=str)
@pytest.mark.parametrize("lengths", [(1, 1, 1, 1), (1, 3), (1, 2, 1)], ids=str)
def test_chunk_lengths_change_nothing(dtype, tolerance, lengths):
    vae, latents = tiny(dtype=dtype), torch.randn(2, 16, 4, 2, 3, dtype=dtype)
    stream, whole = vae.stream(), vae.decode(latents)
    pieces = [stream.decode(piece) for piece in latents.split(lengths, 2)]
    assert [piece.shape[2] for piece in pieces] == [1, *(4 * length for length in lengths[1:])]
    assert whole.shape == (2, 3, 13, 16, 24) and whole.std() > 0.05
    assert_near(torch.cat(pieces, 2), whole, tolerance)


def test_the_past_is_seen_and_the_future_is_not():
    vae, latents = tiny(), torch.randn(1, 16, 3, 2, 2)
    changed = latents.clone()
    changed[:, :, 1] += 1
    before, after = vae.decode(latents), vae.decode(changed)
    assert torch.equal(before[:, :, :1], after[:, :, :1])
    assert all((before[:, :, t] - after[:, :, t]).abs().max() > 1e-4 for t in range(1, 9))


def test_encoding_sees_the_past_only_and_takes_a_frame_from_every_four():
    vae, video = tiny(), torch.rand(1, 3, 9, 16, 16) * 2 - 1
    latents = vae.encode(video)
    assert latents.shape == (1, 16, 3, 2, 2)
    assert_near(vae.encode(video[:, :, :5]), latents[:, :, :2], 1e-6)
    changed = video.clone()
    changed[:, :, 1] += 0.5
    differences = (vae.encode(changed) - latents).abs().amax((0, 1, 3, 4))
    assert differences[0] == 0 and differences[1:].min() > 1e-5


def repeated_past(x: Tensor, frames: int) -> Tensor:
    return torch.cat([x[:, :, :1].expand(-1, -1, frames, -1, -1), x], 2)


def test_copies_of_the_first_frame_are_before_it():
    conv = tiny().decoder.conv_in
    x = torch.randn(1, 16, 2, 3, 3)
    padded = repeated_past(x, 2)
    expected = F.conv3d(padded, conv.weight, conv.bias, padding=(0, 1, 1))
    assert_near(conv(x), expected, 1e-5)
    cache = FeatureCache()
    first, second = conv(x[:, :, :1], cache), conv(x[:, :, 1:], cache)
    assert_near(torch.cat([first, second], 2), expected, 1e-5)


def test_a_clone_continues_bit_for_bit_and_a_reset_takes_another_size():
    vae, frames = tiny(), torch.randn(1, 16, 4, 2, 2).split(1, 2)
    stream = vae.stream()
    stream.decode(frames[0])
    clone = stream.clone()
    for frame in frames[1:]:
        assert torch.equal(stream.decode(frame), clone.decode(frame))
    clone.reset()
    assert clone.decode(torch.randn(1, 16, 1, 3, 2)).shape == (1, 3, 1, 24, 16)


def test_gradients_reach_latents_and_weights():
    vae, latents = AAPTVAE(TINY), torch.randn(1, 16, 2, 2, 2, requires_grad=True)
    vae.decode(latents).square().mean().backward()
    assert latents.grad is not None and latents.grad.abs().max() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.decoder.parameters())


def test_the_layout_of_the_published_checkpoint():
    """Names and shapes as in SeedVR's `ema_vae.pth`."""
    with torch.device("meta"):
        state = AAPTVAE(ORIGINAL).state_dict()
    assert len(state) == 250 and sum(tensor.numel() for tensor in state.values()) == 250_648_227
    shapes = {
        "encoder.down_blocks.1.resnets.0.conv_shortcut.weight": (256, 128, 1, 1, 1),
        "encoder.down_blocks.0.downsamplers.0.conv.weight": (128, 128, 1, 3, 3),
        "encoder.down_blocks.2.downsamplers.0.conv.weight": (512, 512, 3, 3, 3),
        "encoder.conv_norm_out.bias": (512,),
        "encoder.conv_out.weight": (32, 512, 3, 3, 3),
        "decoder.conv_in.weight": (512, 16, 3, 3, 3),
        "decoder.mid_block.attentions.0.group_norm.weight": (512,),
        "decoder.mid_block.attentions.0.to_out.0.weight": (512, 512),
        "decoder.up_blocks.0.upsamplers.0.upscale_conv.weight": (4096, 512, 1, 1, 1),
        "decoder.up_blocks.2.upsamplers.0.upscale_conv.weight": (1024, 256, 1, 1, 1),
        "decoder.up_blocks.3.resnets.2.conv2.weight": (128, 128, 3, 3, 3),
        "decoder.conv_out.weight": (3, 128, 3, 3, 3),
    }
    assert {key: tuple(state[key].shape) for key in shapes} == shapes


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)], ids=str)
def test_norm_and_silu_into_a_part_of_a_tensor(dtype, tolerance):
    """Also where the mean of a group is much larger than what it varies by."""
    x = torch.randn(2, 12, 3, 4, 5) * 0.5 + torch.randint(-8, 8, (2, 12, 3, 1, 1))
    x = x.to(dtype).contiguous(memory_format=torch.channels_last_3d)
    norm = FrameNorm(4, 12).requires_grad_(False)
    norm.weight.normal_()
    norm.bias.normal_()
    expected = F.silu(norm(x.float()))
    whole = torch.full((2, 12, 5, 4, 5), 7.0, dtype=dtype).contiguous(memory_format=torch.channels_last_3d)
    norm.to(dtype).silu_into(x, whole[:, :, 2:])
    assert_near(whole[:, :, 2:].float(), expected, tolerance)
    assert (whole[:, :, :2] == 7).all()


def test_norms_behind_the_past_change_nothing(monkeypatch):
    """The path of GPUs, on a CPU."""
    vae, latents = tiny(), torch.randn(2, 16, 3, 2, 3)
    expected = vae.decode(latents)
    monkeypatch.setattr(feature_cache, "in_one_tensor", lambda x: True)
    stream = vae.stream()
    assert_near(torch.cat([stream.decode(piece) for piece in latents.split((1, 2), 2)], 2), expected, TOLERANCE)


def test_half_precision_follows_float32():
    vae, latents = tiny(), torch.randn(1, 16, 2, 2, 2)
    expected = vae.decode(latents)
    video = tiny().bfloat16().decode(latents)
    assert video.dtype == torch.bfloat16
    assert torch.linalg.vector_norm(video.float() - expected) < 0.02 * torch.linalg.vector_norm(expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder_widths": (64, 128)}, r"decoder_widths: expected 4 entries, one more than temporal_downsample"),
        ({"encoder_widths": (64, 128, 200, 512)}, "encoder_widths: expected multiples of norm_num_groups = 32"),
        ({"decoder_blocks": 0}, "decoder_blocks: expected at least 1, got 0"),
        ({"scaling_factor": -1.0}, "scaling_factor: expected a positive number"),
    ],
)
def test_a_configuration_that_fits_nothing_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(LIGHT, **change)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (torch.zeros(1, 3, 4, 16, 16), r"video: expected 1 \+ 4 n video frames, got 4"),
        (torch.zeros(1, 3, 1, 16, 20), "video: expected height and width multiples of 8"),
        (torch.zeros(1, 3, 1, 16, 16, dtype=torch.uint8), "video: expected a floating-point dtype"),
        (torch.zeros(1, 1, 1, 16, 16), r"video: expected shape \[B, 3"),
    ],
    ids=["length", "size", "dtype", "channels"],
)
def test_a_bad_video_is_refused(video, message):
    with pytest.raises(ValueError, match=message):
        tiny().encode(video)
