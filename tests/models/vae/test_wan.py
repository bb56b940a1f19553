# SPDX-License-Identifier: Apache-2.0
"""The Wan VAE against diffusers' `AutoencoderKLWan` with the same weights; streams against whole clips."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor

from aapt_fast.errors import CheckpointError
from aapt_fast.models.vae import feature_cache
from aapt_fast.models.vae.feature_cache import FeatureCache
from aapt_fast.models.vae.infer_wan_config import keys_of
from aapt_fast.models.vae.wan import WAN_2_2, WanVAE, WanVAEConfig
from aapt_fast.models.vae.wan_keys import WanVAEKeys
from aapt_fast.models.vae.wan_layers import RMSNorm, Upsample, upsample_and_convolve
from aapt_fast.testing.compare import assert_near

# The second has odd channel counts, another number of levels and blocks, and doubles time at other places. The third
# is wide and large enough that pairs of frames are convolved at once. The others have what Wan 2.2 has: shortcuts that
# average and copy in every proportion of widths, blocks of pixels, a decoder width of its own.
CONFIGS = {
    "narrow": WanVAEConfig(base_dim=8),
    "awkward": WanVAEConfig(
        base_dim=6,
        z_dim=5,
        dim_mult=(1, 3, 5),
        num_res_blocks=1,
        temporal_downsample=(True, True),
        latents_mean=(0.5, -1.0, 0.0, 2.0, -0.25),
        latents_std=(2.0, 0.5, 1.0, 3.0, 1.5),
    ),
    "wide": WanVAEConfig(base_dim=16, dim_mult=(1, 2, 2, 2), num_res_blocks=1),
    "wan 2.2": WanVAEConfig(base_dim=8, decoder_base_dim=12, is_residual=True, patch_size=2),
    "other proportions": WanVAEConfig(
        base_dim=4, dim_mult=(1, 2, 4, 1), num_res_blocks=1, temporal_downsample=(True, False, True), is_residual=True
    ),
    "pixel blocks": WanVAEConfig(
        base_dim=4, decoder_base_dim=6, dim_mult=(2, 1, 3), temporal_downsample=(True, True), patch_size=2
    ),
}
TOLERANCE = 5e-5
STREAM_TOLERANCE = 5e-6


def same_weights(vae: AutoencoderKLWan, config: WanVAEConfig) -> WanVAE:
    ours = WanVAE(config).eval()
    keys = keys_of(config)
    ours.load_state_dict({keys.to_original(key): tensor for key, tensor in vae.state_dict().items()}, strict=True)
    return ours.requires_grad_(False)


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request, oracle) -> tuple[WanVAE, AutoencoderKLWan]:
    """Our model and diffusers', equal weights."""
    torch.manual_seed(1)
    config = CONFIGS[request.param]
    theirs = oracle(config)
    return same_weights(theirs, config), theirs


@pytest.fixture(scope="module")
def narrow(oracle) -> WanVAE:
    torch.manual_seed(2)
    config = CONFIGS["narrow"]
    return same_weights(oracle(config), config)


def random_latents(vae: WanVAE, length: int = 5, batch: int = 2) -> Tensor:
    """Latents [batch, z, length, 3, 4]; for pairs of frames to be used, 1024 positions need [8, 12] instead."""
    size = (8, 12) if vae.config == CONFIGS["wide"] else (3, 4)
    return torch.randn(1 if size[0] == 8 else batch, vae.latent_channels, length, *size)


# ---- against diffusers ----


def test_encode_equals_diffusers(pair):
    ours, theirs = pair
    factor = ours.config.spatial_factor
    video = torch.rand(2, 3, 13, 2 * factor, 3 * factor) * 2 - 1
    mean = theirs.encode(video).latent_dist.mean
    latents = ours.encode(video)
    assert latents.shape == (2, ours.latent_channels, 4, 2, 3)
    assert_near(latents * ours.latents_std + ours.latents_mean, mean, TOLERANCE)


def test_decode_equals_diffusers(pair):
    ours, theirs = pair
    latents = random_latents(ours)
    expected = theirs.decode(latents * ours.latents_std + ours.latents_mean).sample
    assert expected.std() > 0.05 and expected.abs().max() < 1, "the oracle's video is flat or clipped"
    assert_near(ours.decode(latents), expected, TOLERANCE)
    stream = ours.stream()
    pieces = [stream.decode(piece) for piece in latents.split([1, 2, 1, 1], dim=2)]
    assert [piece.shape[2] for piece in pieces] == [1, 8, 4, 4]
    assert_near(torch.cat(pieces, dim=2), expected, TOLERANCE)


def test_gradients_equal_diffusers(oracle):
    config = CONFIGS["narrow"]
    theirs = oracle(config)
    ours = same_weights(theirs, config)
    latents = torch.randn(1, 16, 3, 2, 1, requires_grad=True)
    our_state, their_state = (dict(vae.requires_grad_().named_parameters()) for vae in (ours, theirs))
    names = ["decoder.conv_in.weight", "decoder.up_blocks.0.upsamplers.0.resample.1.weight", "post_quant_conv.bias"]
    our_parameters = [latents, *(our_state[WanVAEKeys().to_original(name)] for name in names)]
    their_parameters = [latents, *(their_state[name] for name in names)]
    our_video = ours.decode(latents)
    their_video = theirs.decode(latents * ours.latents_std + ours.latents_mean).sample
    grad_video = torch.randn_like(our_video)
    found = torch.autograd.grad(our_video, our_parameters, grad_video)
    expected = torch.autograd.grad(their_video, their_parameters, grad_video)
    for name, a, b in zip(("latents", *names), found, expected, strict=True):
        assert_near(a, b, TOLERANCE, name)


def test_the_published_key_layout():
    with torch.device("meta"):
        published = WanVAE()
    state = published.state_dict()
    assert len(state) == 194
    assert sum(tensor.numel() for tensor in state.values()) == 126_892_531
    shapes = {
        "encoder.conv1.weight": (96, 3, 3, 3, 3),
        "encoder.downsamples.2.resample.1.weight": (96, 96, 3, 3),
        "encoder.downsamples.5.time_conv.weight": (192, 192, 3, 1, 1),
        "encoder.middle.1.to_qkv.weight": (1152, 384, 1, 1),
        "encoder.head.0.gamma": (384, 1, 1, 1),
        "conv1.weight": (32, 32, 1, 1, 1),
        "conv2.bias": (16,),
        "decoder.middle.1.norm.gamma": (384, 1, 1),
        "decoder.upsamples.3.time_conv.weight": (768, 384, 3, 1, 1),
        "decoder.upsamples.4.shortcut.weight": (384, 192, 1, 1, 1),
        "decoder.upsamples.14.residual.6.weight": (96, 96, 3, 3, 3),
        "decoder.head.2.weight": (3, 96, 3, 3, 3),
    }
    assert {key: tuple(state[key].shape) for key in shapes} == shapes


def test_the_published_key_layout_of_wan_2_2():
    with torch.device("meta"):
        state = WanVAE(WAN_2_2).state_dict()
    assert len(state) == 196
    assert sum(tensor.numel() for tensor in state.values()) == 704_688_668
    shapes = {
        "encoder.conv1.weight": (160, 12, 3, 3, 3),
        "encoder.downsamples.0.downsamples.2.resample.1.weight": (160, 160, 3, 3),
        "encoder.downsamples.1.downsamples.0.shortcut.weight": (320, 160, 1, 1, 1),
        "encoder.downsamples.2.downsamples.2.time_conv.weight": (640, 640, 3, 1, 1),
        "encoder.downsamples.3.downsamples.1.residual.6.weight": (640, 640, 3, 3, 3),
        "encoder.head.2.weight": (96, 640, 3, 3, 3),
        "decoder.conv1.weight": (1024, 48, 3, 3, 3),
        "decoder.upsamples.0.upsamples.3.time_conv.weight": (2048, 1024, 3, 1, 1),
        "decoder.upsamples.2.upsamples.0.shortcut.weight": (512, 1024, 1, 1, 1),
        "decoder.upsamples.2.upsamples.3.resample.1.weight": (512, 512, 3, 3),
        "decoder.upsamples.3.upsamples.2.residual.3.gamma": (256, 1, 1, 1),
        "decoder.head.2.weight": (12, 256, 3, 3, 3),
    }
    assert {key: tuple(state[key].shape) for key in shapes} == shapes


@pytest.mark.parametrize("key", ["decoder.up_blocks.0.norm3.gamma", "decoder.conv_in.running_mean", "conv1.weight"])
def test_an_unknown_key_is_named(key):
    with pytest.raises(CheckpointError, match=key):
        WanVAEKeys().to_original(key)


# ---- streams ----


@pytest.mark.parametrize("lengths", [(1, 4), (1, 3, 1), (1, 2, 2)])
def test_chunk_lengths_change_nothing(pair, lengths):
    ours, _ = pair
    latents = random_latents(ours)
    stream = ours.stream()
    pieces = [stream.decode(piece) for piece in latents.split(lengths, dim=2)]
    whole = ours.decode(latents)
    difference = (torch.cat(pieces, dim=2) - whole).abs().max().item()
    assert difference <= STREAM_TOLERANCE, difference


def test_a_clone_goes_on_bit_for_bit(pair):
    ours, _ = pair
    latents = random_latents(ours, length=4)
    first, second, third, fourth = latents.split(1, dim=2)
    stream = ours.stream()
    stream.decode(first)
    stream.decode(second)
    clone = stream.clone()
    clone.decode(third + 1)  # the clone's own way must not show in the original
    clone = stream.clone()
    expected = [stream.decode(third), stream.decode(fourth)]
    stream.reset()
    assert torch.equal(clone.decode(third), expected[0])
    assert torch.equal(clone.clone().decode(fourth), expected[1])
    assert torch.equal(clone.decode(fourth), expected[1])


def test_reset_starts_a_clip_of_another_size(narrow):
    latents = random_latents(narrow, length=2)
    stream = narrow.stream()
    stream.decode(torch.randn(1, 16, 1, 2, 2))
    stream.reset()
    pieces = [stream.decode(piece) for piece in latents.split(1, dim=2)]
    assert torch.equal(torch.cat(pieces, dim=2), narrow.decode(latents))


def test_future_frames_leave_past_frames_alone(narrow):
    latents = random_latents(narrow, length=3)
    changed = latents.clone()
    changed[:, :, 2] += 5
    streams = [(narrow.stream(), clip.split((1, 2), dim=2)) for clip in (latents, changed)]  # the last two at once
    before, after = (torch.cat([stream.decode(piece) for piece in pieces], dim=2) for stream, pieces in streams)
    assert torch.equal(before[:, :, :5], after[:, :, :5]) and not torch.equal(before, after)


def test_uint8_frames_are_the_rounded_float_frames(narrow):
    loud = copy.deepcopy(narrow)
    loud.decoder.head["2"].weight.mul_(50)
    latents = random_latents(loud, length=1)
    video = loud.stream().decode(latents)
    assert video.min() == -1 and video.max() == 1
    pixels = loud.stream().decode(latents, out="uint8")
    assert pixels.dtype == torch.uint8 and pixels.is_contiguous(), "an image encoder wants the colours last"
    assert torch.equal(pixels, ((video + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1))


def test_a_stream_keeps_no_more_than_two_frames_per_layer(narrow):
    cache = FeatureCache()
    for length in (1, 5, 1):
        cache.append("layer", torch.randn(2, 3, 7, 4, 4)[:, :, :length], keep=2)
        kept = cache.get("layer")
        assert kept.shape[2] == 2 and kept.untyped_storage().nbytes() == kept.numel() * kept.element_size()


def test_a_cache_returns_from_its_tensors():
    cache = FeatureCache()
    frames = torch.randn(1, 3, 1, 4, 4)
    cache.append("layer", frames, keep=2)
    assert_near(cache.get("layer"), torch.cat([torch.zeros_like(frames), frames], dim=2), 0)
    restored = FeatureCache(cache.tensors())
    restored.append("layer", frames + 1, keep=2)
    assert_near(restored.get("layer"), torch.cat([frames, frames + 1], dim=2), 0)
    assert_near(cache.get("layer")[:, :, 1:], frames, 0)


# ---- parts, dtypes ----


@pytest.mark.parametrize("size", [(1, 1), (3, 2)])
def test_upsampling_without_the_large_image(size):
    layer = Upsample(6, temporal=False, out_channels=3)
    frames = torch.randn(2, 6, *size)
    weight, bias = layer.resample[1].weight, layer.resample[1].bias
    expected = F.conv2d(F.interpolate(frames, scale_factor=2, mode="nearest-exact"), weight, bias, padding=1)
    assert_near(upsample_and_convolve(frames, weight, bias), expected, 1e-6)
    assert_near(layer(frames[:, :, None], FeatureCache())[:, :, 0], expected, 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_norm_in_half_precision_has_the_same_bits_with_and_without_gradients(dtype):
    x = torch.randn(1, 96, 2, 6, 7).to(dtype).contiguous(memory_format=torch.channels_last_3d)
    x[0, :, 0, 0, 0] = 0
    norm = RMSNorm(96).to(dtype)
    expected = F.normalize(x.float(), dim=1).to(dtype) * 96**0.5 * norm.gamma
    assert torch.equal(norm(x), expected)
    with torch.no_grad():
        found = norm(x)
    assert torch.equal(found, expected) and found.stride() == x.stride()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.03)], ids=str)
def test_norm_and_silu_into_a_part_of_a_tensor(dtype, tolerance):
    x = torch.randn(2, 48, 2, 3, 4).to(dtype).contiguous(memory_format=torch.channels_last_3d)
    x[0, :, 0, 0, 0] = 0
    norm = RMSNorm(48).to(dtype).requires_grad_(False)
    norm.gamma.normal_()
    whole = torch.full((2, 48, 4, 3, 4), 7.0, dtype=dtype).contiguous(memory_format=torch.channels_last_3d)
    norm.silu_into(x, whole[:, :, 2:])
    assert_near(whole[:, :, 2:], F.silu(norm(x)), tolerance)
    assert (whole[:, :, :2] == 7).all()


def test_norms_behind_the_past_change_nothing(pair, monkeypatch):
    """The path of GPUs, on a CPU."""
    ours, _ = pair
    latents = random_latents(ours, length=3)
    expected = ours.decode(latents)
    monkeypatch.setattr(feature_cache, "in_one_tensor", lambda x: True)
    stream = ours.stream()
    first = stream.decode(latents[:, :, :1])
    clone = stream.clone()
    assert_near(torch.cat([first, stream.decode(latents[:, :, 1:])], 2), expected, TOLERANCE)
    assert_near(torch.cat([first, *(clone.decode(latents[:, :, t : t + 1]) for t in (1, 2))], 2), expected, TOLERANCE)


def test_bfloat16(narrow):
    config = CONFIGS["narrow"]
    half = WanVAE(config).eval()
    half.load_state_dict(narrow.state_dict())
    half = half.to(torch.bfloat16).requires_grad_(False)
    latents = random_latents(narrow, length=3)
    expected = narrow.decode(latents)
    stream = half.stream()
    video = torch.cat([stream.decode(piece) for piece in latents.split([1, 2], dim=2)], dim=2)
    assert video.dtype == torch.bfloat16
    assert F.cosine_similarity(video.float().flatten(), expected.flatten(), dim=0) > 0.999
    encoded = half.encode(expected)
    assert encoded.dtype == torch.bfloat16
    assert F.cosine_similarity(encoded.float().flatten(), narrow.encode(expected).flatten(), dim=0) > 0.999


# ---- errors ----

VIDEO_ERRORS = {
    "odd height": (torch.zeros(1, 3, 5, 15, 16), "video: expected height and width multiples of 8, got (15, 16)"),
    "odd width": (torch.zeros(1, 3, 5, 16, 20), "video: expected height and width multiples of 8, got (16, 20)"),
    "four frames": (torch.zeros(1, 3, 4, 16, 16), "video: expected 1 + 4 n video frames, got 4"),
    "grey": (torch.zeros(1, 1, 5, 16, 16), "video: expected shape [B, 3, T, H, W], got [1, 1, 5, 16, 16]"),
    "an image": (torch.zeros(3, 16, 16), "video: expected shape [B, 3, T, H, W], got [3, 16, 16]"),
    "empty": (torch.zeros(1, 3, 0, 16, 16), "video: expected at least one element"),
    "bytes": (torch.zeros(1, 3, 5, 16, 16, dtype=torch.uint8), "video: expected a floating-point dtype"),
}
LATENT_ERRORS = {
    "channels": (torch.zeros(1, 15, 1, 2, 2), "latents: expected shape [B, 16, n, h, w], got [1, 15, 1, 2, 2]"),
    "four dimensions": (torch.zeros(1, 16, 2, 2), "latents: expected shape"),
    "empty": (torch.zeros(1, 16, 0, 2, 2), "latents: expected at least one element"),
    "integers": (torch.zeros(1, 16, 1, 2, 2, dtype=torch.int64), "latents: expected a floating-point dtype"),
}


def assert_refused(message: str, function, *arguments, **options) -> None:
    with pytest.raises(ValueError) as error:
        function(*arguments, **options)
    assert str(error.value).startswith(message), error.value


@pytest.mark.parametrize("case", VIDEO_ERRORS)
def test_bad_video(narrow, case):
    video, message = VIDEO_ERRORS[case]
    assert_refused(message, narrow.encode, video)


@pytest.mark.parametrize("case", LATENT_ERRORS)
def test_bad_latents(narrow, case):
    latents, message = LATENT_ERRORS[case]
    assert_refused(message, narrow.decode, latents)
    assert_refused(message, narrow.stream().decode, latents)


def test_bad_chunks(narrow):
    clip = torch.zeros(1, 16, 2, 2, 2)
    stream = narrow.stream()
    assert_refused("latents: expected exactly one frame in the first chunk", stream.decode, clip)
    assert_refused("out: expected 'float' or 'uint8', got 'png'", stream.decode, clip[:, :, :1], out="png")
    stream.decode(clip[:, :, :1])
    assert_refused("latents: expected batch, height and width (1, 2, 2) as before", stream.decode, clip[..., :1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(latents_mean=(0.0,)), "latents_mean: expected z_dim = 16 entries, got 1"),
        (dict(z_dim=8), "latents_mean: expected z_dim = 8 entries, got 16"),
        (dict(latents_std=(0.0,) * 16), "latents_std: expected positive numbers"),
        (dict(temporal_downsample=(True,)), "temporal_downsample: expected 3 entries"),
        (dict(base_dim=5, dim_mult=(1, 1, 2, 2)), "base_dim * dim_mult: expected even below the first level"),
        (dict(base_dim=0), "base_dim: expected at least 1"),
        (dict(num_res_blocks=0), "num_res_blocks: expected at least 1"),
    ],
)
def test_bad_config(change, message):
    assert_refused(message, lambda: dataclasses.replace(WanVAEConfig(), **change))
