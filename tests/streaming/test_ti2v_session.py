# SPDX-License-Identifier: Apache-2.0
"""Sessions of a tiny Wan 2.2 TI2V: 48 latent channels, and a VAE with 16 x 16 pixels per latent cell."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from aapt_fast import WindowRule
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.wan import WAN_2_2, WanVAE
from aapt_fast.streaming.session import StreamSession
from aapt_fast.testing.compare import assert_near
from aapt_fast.testing.wan import WAN_KINDS, random_wan

GRID, SIZE = (2, 4), (32, 64)


@pytest.fixture(scope="module")
def model() -> StreamModel:
    generator = random_wan(dataclasses.replace(WAN_KINDS["ti2v"], window_rule=WindowRule(2, 2, 1)))
    torch.manual_seed(3)
    vae = WanVAE(dataclasses.replace(WAN_2_2, base_dim=4, decoder_base_dim=4)).eval().requires_grad_(False)
    return StreamModel(generator, vae, grid=GRID)


def a_session(model: StreamModel, *image: torch.Tensor) -> StreamSession:
    prompt = torch.randn(5, model.config.text_width, generator=torch.Generator().manual_seed(4))
    return StreamSession(model, *image, prompt=prompt, seed=7)


def test_video_has_16_pixels_per_latent_cell(model):
    assert model.video_size == SIZE
    session = a_session(model)
    assert [session.step().shape for _ in range(3)] == [(5, *SIZE, 3), (8, *SIZE, 3), (8, *SIZE, 3)]


def test_the_stream_is_the_decoded_clip_after_an_image(model):
    image = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(5)) * 2 - 1
    session = a_session(model, image)
    assert_near(session.frame, model.vae.encode(image[None, :, None]), 1e-6)
    frames, video = [session.frame], [session.first_frame[None]]
    for _ in range(2):
        video.append(session.step())
        frames.append(session.frame)
    assert torch.cat(video).shape == (1 + 4 * 4, *SIZE, 3)
    whole = model.vae.decode(torch.cat(frames, 2))[0].permute(1, 2, 3, 0)
    assert_near(torch.cat(video) / 127.5 - 1, whole, 0.51 / 127.5)


def test_an_image_of_8_pixels_per_cell_is_refused(model):
    with pytest.raises(ValueError, match=r"image: expected shape \[3, 32, 64\], got \[3, 16, 32\]"):
        a_session(model, torch.zeros(3, 16, 32))


def test_the_grid_is_that_of_the_training_unless_given(model):
    assert StreamModel(model.generator, model.vae).video_size == (704, 1280)
    unknown = WanVAE(dataclasses.replace(model.vae.config, patch_size=4))
    with pytest.raises(ValueError, match="grid: expected latent height and width, for 32 pixels per cell, got None"):
        StreamModel(model.generator, unknown)
    assert StreamModel(model.generator, unknown, grid=GRID).video_size == (64, 128)
