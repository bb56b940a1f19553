# SPDX-License-Identifier: Apache-2.0
"""A video VAE that this package does not know streams after one file: the one in docs/how-to/add-a-decoder.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from aapt_fast import StreamSession, load_gallery
from aapt_fast.models.aapt.presets import NANO_TEXT
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.streaming import graph
from aapt_fast.testing.compare import assert_near
from aapt_fast.testing.recorder import record_on_cpu
from aapt_fast.testing.streams import play, random_model, random_session

HOW_TO = Path(__file__).parents[3] / "docs" / "how-to" / "add-a-decoder.md"


@pytest.fixture
def vae() -> nn.Module:
    (source,) = re.findall(r"```python\n(.*?)```", HOW_TO.read_text(), re.DOTALL)
    scope: dict = {}
    exec(compile(source, str(HOW_TO), "exec"), scope)
    torch.manual_seed(0)
    return scope["TinyVAE"]().eval()


def test_chunk_lengths_change_nothing(vae):
    latents = torch.randn(2, 16, 6, 2, 3)
    videos = []
    for lengths in ([1] * 6, [1, 5], [1, 2, 3]):
        stream = vae.stream()
        videos.append(torch.cat([stream.decode(chunk) for chunk in latents.split(lengths, 2)], 2))
        assert videos[-1].shape == (2, 3, 21, 16, 24)
        assert_near(videos[-1], videos[0], 1e-6, "video")
    assert (vae.stream().decode(latents[:, :, 5:]) - videos[0][:, :, -1:]).abs().max() > 1e-3, "it looks back"


def test_a_clone_continues_bit_by_bit(vae):
    frames = torch.randn(1, 16, 4, 2, 2).split(1, 2)
    stream = vae.stream()
    stream.decode(frames[0])
    clone = stream.clone()
    for frame in frames[1:]:
        assert torch.equal(stream.decode(frame, out="uint8"), clone.decode(frame, out="uint8"))


def test_bad_latents_are_refused(vae):
    stream = vae.stream()
    with pytest.raises(ValueError, match=r"latents: expected shape \[B, 16, n, h, w\], got \[1, 8, 1, 2, 2\]"):
        stream.decode(torch.zeros(1, 8, 1, 2, 2))
    stream.decode(torch.zeros(1, 16, 1, 2, 2))
    with pytest.raises(ValueError, match=r"latents: expected batch, height and width \(1, 2, 2\) as before"):
        stream.decode(torch.zeros(1, 16, 1, 2, 3))


def test_a_bundled_model_keeps_its_world_with_it(vae):
    model = StreamModel.from_pretrained("mini-person", vae=vae)
    first = load_gallery("mini-person")[0]
    player = model.world.player(first, "walk")
    session = StreamSession(model, first)
    assert next(session.frames(player)).shape == (4, 96, 96, 3)


def test_sessions_stream_through_it(vae, monkeypatch):
    monkeypatch.setitem(graph.RECORDERS, "cpu", record_on_cpu)
    model = StreamModel(random_model(NANO_TEXT).generator, vae)
    frames, video = play(random_session(model), [None] * 4)
    assert frames.shape == (1, 16, 4, 4, 6) and video.shape == (16, 32, 48, 3) and video.dtype == torch.uint8
    session = random_session(model, cuda_graph=True)
    fork = session.fork()
    for made in (play(session, [None] * 4), play(fork, [None] * 4)):
        assert torch.equal(made[0], frames) and torch.equal(made[1], video)
