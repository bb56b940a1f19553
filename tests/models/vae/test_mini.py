# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from aapt_fast.models.vae.layers import fold_time, unfold_time
from aapt_fast.models.vae.mini import MiniVAE, MiniVAEConfig
from aapt_fast.testing.compare import assert_near

TINY = MiniVAEConfig(
    latent_channels=6,
    encoder_widths=(8, 8, 12),
    encoder_blocks=(1, 1, 1),
    decoder_widths=(8, 8, 12),
    decoder_blocks=(1, 1, 1),
)


def perturbed(config: MiniVAEConfig = TINY) -> MiniVAE:
    """A codec without zero-initialised layers, so that its convolutional branches count; not in unit scale either."""
    vae = MiniVAE(config)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        vae.latent_std.fill_(1.7)
    return vae


def low_rank_video(frames: int) -> torch.Tensor:
    """Video [2, 3, frames, 16, 16] around a mean picture, made of few patterns of different strength."""
    patterns = torch.randn(12, 3, frames, 16, 16) * torch.logspace(0, -2, 12).view(-1, 1, 1, 1, 1)
    return 0.3 + 0.2 * torch.einsum("bp,pcthw->bcthw", torch.randn(2, 12), patterns)


def blocks_of(video: torch.Tensor) -> torch.Tensor:
    """All 4 x 8 x 8 blocks of video [B, 3, 4 n, H, W] as rows [blocks, 768]."""
    blocks = video.unfold(2, 4, 4).unfold(3, 8, 8).unfold(4, 8, 8)  # [B, 3, n, H/8, W/8, 4, 8, 8]
    return blocks.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(0, 3).flatten(1)


def linear_latents(vae: MiniVAE, video: torch.Tensor) -> torch.Tensor:
    """The linear code [B, z, n, h, w] of the blocks of video [B, 3, 4 n, H, W], coded behind an image."""
    return vae.encode(torch.cat([video[:, :, :1], video], 2), linear_only=True)[:, :, 1:]


@torch.no_grad()
def test_linear_shortcut_is_the_projection_onto_the_strongest_directions():
    vae, video = MiniVAE(TINY), low_rank_video(12)
    vae.fit_linear(video)
    latents = linear_latents(vae, video)
    decoded = vae.reconstruct(latents, linear_only=True)

    blocks = blocks_of(video).double()
    mean = blocks.mean(0)
    _, strengths, directions = torch.linalg.svd(blocks - mean, full_matrices=False)
    kept = directions[: TINY.latent_channels]
    projected = mean + (blocks - mean) @ kept.T @ kept
    assert_near(blocks_of(decoded), projected, 2e-5, "blocks")
    lost = (blocks - projected).square().sum()
    assert lost > 0.01 and lost == pytest.approx(float(strengths[TINY.latent_channels :].square().sum()))


@torch.no_grad()
def test_fitted_latents_have_unit_power_and_keep_the_order_of_strength():
    vae, video = MiniVAE(TINY), low_rank_video(12)
    vae.fit_linear(video)
    latents = linear_latents(vae, video)
    power = latents.square().mean((0, 2, 3, 4))
    assert float(power.mean()) == pytest.approx(1, rel=1e-4)
    assert (power[:-1] > power[1:]).all()


@torch.no_grad()
def test_a_new_codec_is_its_linear_shortcut():
    vae, video = MiniVAE(TINY), torch.rand(1, 3, 9, 16, 24) * 2 - 1
    latents = vae.encode(video)
    assert torch.equal(latents, vae.encode(video, linear_only=True))
    assert torch.equal(vae.reconstruct(latents), vae.reconstruct(latents, linear_only=True))


@torch.no_grad()
def test_shapes_and_range():
    vae = perturbed()
    latents = vae.encode(torch.rand(2, 3, 9, 16, 24) * 2 - 1)
    assert latents.shape == (2, 6, 3, 2, 3)
    video = vae.decode(50 * latents)
    assert video.shape == (2, 3, 9, 16, 24) and video.min() == -1 and video.max() == 1


@torch.no_grad()
@pytest.mark.parametrize("chunks", [[1] * 6, [1, 2, 3], [1, 5], [1, 4, 1]], ids=str)
def test_stream_equals_the_whole_clip(chunks):
    vae, latents = perturbed(), torch.randn(2, 6, 6, 2, 3)
    stream = vae.stream()
    pieces = [stream.decode(chunk) for chunk in latents.split(chunks, dim=2)]
    assert [piece.shape[2] for piece in pieces] == [1, *(4 * chunk for chunk in chunks[1:])]
    assert_near(torch.cat(pieces, 2), vae.decode(latents), 2e-6, "video")


@torch.no_grad()
def test_the_decoder_remembers():
    """Without this, a stream that forgot its past would equal the whole clip as well."""
    vae, latents = perturbed(), torch.randn(1, 6, 2, 2, 2)
    continued = vae.decode(latents)[:, :, 1:]
    assert (continued - vae.reconstruct(latents[:, :, 1:]).clamp(-1, 1)).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("before", [0, 1, 3])
def test_a_clone_continues_bit_by_bit_and_alone(before):
    vae, latents = perturbed(), torch.randn(1, 6, 8, 2, 2)
    stream, untouched = vae.stream(), vae.stream()
    frames = latents.split(1, dim=2)
    for frame in frames[:before]:
        stream.decode(frame)
        untouched.decode(frame)
    clone = stream.clone()
    clone.decode(torch.randn(1, 6, 1, 2, 2))  # goes its own way
    clone = stream.clone()
    for frame in frames[before:]:
        expected = untouched.decode(frame)
        assert torch.equal(stream.decode(frame), expected)
        assert torch.equal(clone.decode(frame), expected)


@torch.no_grad()
def test_reset_starts_anew():
    vae, latents = perturbed(), torch.randn(1, 6, 2, 2, 2).split(1, 2)
    stream = vae.stream()
    first = [stream.decode(frame) for frame in latents]
    stream.reset()
    assert all(torch.equal(stream.decode(frame), video) for frame, video in zip(latents, first, strict=True))


@torch.no_grad()
def test_the_encoder_does_not_see_the_future():
    vae, video = perturbed(), torch.rand(1, 3, 17, 16, 16) * 2 - 1
    before = vae.encode(video)
    video[:, :, 9:] = torch.rand(1, 3, 8, 16, 16) * 2 - 1  # of latent frame 3 and later
    difference = (vae.encode(video) - before).abs().amax((0, 1, 3, 4))
    assert difference[:3].max() == 0.0 and difference[3:].min() > 1e-3


@torch.no_grad()
def test_the_encoder_sees_the_past():
    vae, video = perturbed(), torch.rand(1, 3, 9, 16, 16) * 2 - 1
    before = vae.encode(video)
    video[:, :, 1:5] = torch.rand(1, 3, 4, 16, 16) * 2 - 1
    assert (vae.encode(video) - before)[:, :, 2].abs().max() > 1e-4


@torch.no_grad()
def test_the_first_latent_is_that_of_the_image():
    vae, video = perturbed(), torch.rand(2, 3, 9, 16, 16) * 2 - 1
    assert_near(vae.encode(video[:, :, :1]), vae.encode(video)[:, :, :1], 2e-6, "latent")


@torch.no_grad()
def test_latent_std_scales_latents_and_not_videos():
    vae, video = perturbed(), torch.rand(1, 3, 5, 16, 16) * 2 - 1
    latents, decoded = vae.encode(video), vae.decode(vae.encode(video))
    vae.latent_std.fill_(3.4)
    assert_near(vae.encode(video), latents / 2, 1e-6, "latents")
    assert_near(vae.decode(vae.encode(video)), decoded, 1e-5, "video")


def test_gradients_reach_every_parameter():
    vae, video = perturbed(), torch.rand(2, 3, 9, 16, 16) * 2 - 1
    (vae.reconstruct(vae.encode(video))[:, :, 3:] - video).square().mean().backward()
    missed = [name for name, p in vae.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert missed == []


def test_folding_time_is_time_major_and_reversible():
    video = torch.arange(2 * 3 * 8).float().view(1, 2, 8 * 3, 1, 1)
    folded = fold_time(video, 4)
    assert folded.shape == (1, 8, 6, 1, 1)
    assert folded[0, :, 0, 0, 0].tolist() == [0, 24, 1, 25, 2, 26, 3, 27]
    assert torch.equal(unfold_time(folded, 4), video)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 8, 16, 16), "video: expected 1 \\+ 4 n video frames, got 8"),
        ((1, 3, 5, 20, 16), r"video: expected H, W multiples of 8, got \(20, 16\)"),
        ((1, 3, 5, 16, 12), r"video: expected H, W multiples of 8, got \(16, 12\)"),
        ((1, 4, 5, 16, 16), r"video: expected shape \[B, 3, 1 \+ 4 n, H, W\]"),
        ((3, 5, 16, 16), r"video: expected shape \[B, 3, 1 \+ 4 n, H, W\]"),
    ],
)
def test_odd_videos_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        MiniVAE(TINY).encode(torch.zeros(shape))


def test_odd_latents_are_refused():
    with pytest.raises(ValueError, match=r"latents: expected shape \[B, 6, n, h, w\], got \[1, 5, 2, 2, 2\]"):
        MiniVAE(TINY).decode(torch.zeros(1, 5, 2, 2, 2))


@torch.no_grad()
def test_four_levels_make_a_codec_of_16_pixels_per_cell():
    """A stream of it equals the whole clip, and bad sizes are refused."""
    vae = perturbed(MiniVAEConfig(5, (4, 4, 4, 4), (1, 1, 1, 1), (4, 4, 6, 8), (1, 1, 1, 1)))
    assert vae.spatial_factor == 16
    latents = torch.randn(1, 5, 3, 2, 3)
    whole, stream = vae.decode(latents), vae.stream()
    assert whole.shape == (1, 3, 9, 32, 48)
    parts = [stream.decode(latents[:, :, frame : frame + 1]) for frame in range(3)]
    assert_near(torch.cat(parts, 2), whole, 2e-5, "stream")
    assert vae.encode(whole).shape == latents.shape
    with pytest.raises(ValueError, match=r"video: expected H, W multiples of 16, got \(24, 32\)"):
        vae.encode(torch.zeros(1, 3, 5, 24, 32))


def test_other_numbers_of_levels_are_refused():
    with pytest.raises(ValueError, match=r"decoder_widths: expected 3 or 4 levels, got \(8, 8\)"):
        MiniVAEConfig(decoder_widths=(8, 8))
    with pytest.raises(ValueError, match=r"encoder_blocks: expected 4 levels, got \(1, 1, 2\)"):
        MiniVAEConfig(encoder_widths=(4,) * 4, decoder_widths=(4,) * 4, decoder_blocks=(1,) * 4)
