# SPDX-License-Identifier: Apache-2.0
"""Whatever the caller does around a session or to what it gave out, the stream stays the same."""

from __future__ import annotations

import numpy
import pytest
import torch

from aapt_fast import PagePool, SessionBatch, StreamSession
from aapt_fast.models.aapt.presets import NANO, NANO_TEXT
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.wan import WanVAE, WanVAEConfig
from aapt_fast.testing.streams import play, random_controls, random_model, random_session

STEPS = 6  # frame 1 leaves the window of 2 after step 3


@pytest.fixture(params=[NANO, NANO_TEXT], ids=["pose", "text"])
def model(request) -> StreamModel:
    return random_model(request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_around_some_of_it(model, dtype):
    model = random_model(model.config, dtype)
    controls = random_controls(model, STEPS)
    expected = play(random_session(model), controls)[0]
    with torch.autocast("cpu", torch.bfloat16):
        session = random_session(model)
        begin = play(session, controls[:2])[0]
    middle = play(session, controls[2:4])[0]
    with torch.autocast("cpu", torch.bfloat16):
        fork = session.fork()
        end = play(fork, controls[4:])[0]
        session.reset()
        again = play(session, controls[:2])[0]
    assert torch.equal(torch.cat([begin, middle, end], 2), expected)
    assert torch.equal(again, expected[:, :, :2])


def test_autocast_around_steps_together(model):
    controls = random_controls(model, 2)
    expected = play(random_session(model), controls)[0]
    session = random_session(model, pool=PagePool.for_sessions(model, 1, text_length=5))
    with torch.autocast("cpu", torch.bfloat16):
        batch = SessionBatch([session])
        batch.step(controls[:1])
    batch.step(controls[1:])
    assert (session.frame - expected[:, :, -1:]).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["mini", "wan"])
@torch.no_grad()
def test_autocast_around_a_decoder(kind):
    torch.manual_seed(0)
    vae = random_model(NANO).vae if kind == "mini" else WanVAE(WanVAEConfig(base_dim=8, num_res_blocks=1)).eval()
    latents = torch.randn(1, vae.latent_channels, 3, 4, 4).split(1, 2)
    plain, stream = vae.stream(), vae.stream()
    for number, frame in enumerate(latents):
        with torch.autocast("cpu", torch.bfloat16, enabled=number != 1):
            video = stream.decode(frame)
        assert torch.equal(video, plain.decode(frame)) and video.dtype == torch.float32


def test_what_was_given_out_may_be_changed(model):
    controls = random_controls(model, 3)
    expected = play(random_session(model), controls)[0]
    session = random_session(model)
    session.frame.add_(100)
    for number, control in enumerate(controls):
        session.step(control).zero_()
        assert torch.equal(session.frame, expected[:, :, number : number + 1])
        session.frame.add_(100)


def test_numbers_of_numpy_are_numbers(model):
    control = random_controls(model, 1)
    expected = play(random_session(model), control)[0]
    assert torch.equal(play(random_session(model, seed=numpy.int64(7)), control)[0], expected)
    image = numpy.zeros((*model.video_size, 3), numpy.uint8)
    assert model.encode_image(image[::-1]).shape == expected.shape


def test_a_model_by_its_name_is_refused():
    with pytest.raises(TypeError, match="model: expected StreamModel, got str"):
        StreamSession("mini-person", torch.zeros(3, 32, 32))
