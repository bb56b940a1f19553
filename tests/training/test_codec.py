# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import dataclasses
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aapt_fast.models.vae.mini import MiniVAEConfig
from aapt_fast.training import codec
from aapt_fast.training.codec import CodecConfig, evaluate_codec, train_codec
from aapt_fast.training.data import ClipSet, ClipSetConfig, held_out_clips, make_clip
from aapt_fast.training.run import Watch
from aapt_fast.worlds.person.world import PersonWorld

TINY = MiniVAEConfig(
    latent_channels=4,
    encoder_widths=(8, 8, 8),
    encoder_blocks=(1, 1, 1),
    decoder_widths=(8, 8, 8),
    decoder_blocks=(1, 1, 1),
)
SHORT = CodecConfig(TINY, steps=6, batch=2, crop=16, crop_frames=5, gan_from=0.3, evaluate_every=3, compile=False)


@pytest.fixture(scope="module")
def clip_set(tmp_path_factory) -> ClipSet:
    """Three clips of the person world, 9 video frames of 32 x 32."""
    folder, config = tmp_path_factory.mktemp("clips"), ClipSetConfig("tiny", PersonWorld(), clips=3, frames=9, size=32)
    clips = [make_clip(config, number) for number in range(3)]
    np.save(folder / "tiny.video.npy", torch.stack([clip.video for clip in clips]).numpy())
    np.save(folder / "tiny.points.npy", torch.stack([clip.controls for clip in clips]).numpy())
    return ClipSet(folder, config)


@pytest.fixture(scope="module")
def held_out() -> torch.Tensor:
    return held_out_clips(ClipSetConfig("held-out", PersonWorld(), clips=1, frames=9, size=32, seed=1))[0]


def checkpoint(folder: Path) -> dict:
    return torch.load(folder / "checkpoint.pt", weights_only=True)["state"]


def tensors_of(state, name: str = "state"):
    """All tensors of a nested state, by name."""
    if isinstance(state, torch.Tensor):
        yield name, state
    elif isinstance(state, dict | list | tuple):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            yield from tensors_of(value, f"{name}.{key}")


def test_interrupted_and_resumed_equals_straight_on(tmp_path, clip_set, held_out, monkeypatch):
    """Codec, critic, average and both optimisers, bit by bit; the critic has joined before the interruption."""
    monkeypatch.setattr(codec, "evaluate_codec", lambda *_: {})
    straight = train_codec(tmp_path / "straight", SHORT, [clip_set], {"": held_out})

    evaluations = []

    def noting(*_: object) -> dict[str, float]:
        evaluations.append(1)
        return {}

    watch = Watch(stop=lambda: nullcontext(lambda: len(evaluations) == 2))  # at step 3
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="stopped after step 4"):
        patch.setattr(codec, "evaluate_codec", noting)
        train_codec(tmp_path / "resumed", SHORT, [clip_set], {"": held_out}, watch=watch)
    resumed = train_codec(tmp_path / "resumed", SHORT, [clip_set], {"": held_out})
    for name, tensor in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    expected = dict(tensors_of(checkpoint(tmp_path / "straight")))
    actual = dict(tensors_of(checkpoint(tmp_path / "resumed")))
    assert len(expected) > 50 and list(actual) == list(expected)
    assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())


def test_another_configuration_is_refused_by_name(tmp_path, clip_set, held_out):
    train_codec(tmp_path, dataclasses.replace(SHORT, steps=1), [clip_set], {"": held_out})
    with pytest.raises(ValueError, match=r"^steps, gan_weight: expected the values in"):
        train_codec(tmp_path, dataclasses.replace(SHORT, steps=2, gan_weight=1.0), [clip_set], {"": held_out})


@pytest.mark.parametrize(("gan_from", "trained"), [(0.0, True), (1.0, False)])
def test_the_critic_joins_when_it_is_due(tmp_path, clip_set, held_out, monkeypatch, gan_from, trained):
    monkeypatch.setattr(codec, "evaluate_codec", lambda *_: {})
    train_codec(tmp_path, dataclasses.replace(SHORT, steps=2, gan_from=gan_from), [clip_set], {"": held_out})
    state = checkpoint(tmp_path)
    assert bool(state["critic_optimiser"]["state"]) == trained
    with (tmp_path / "log.csv").open() as file:
        assert ("critic" in list(csv.DictReader(file))[-1]) == trained


def test_no_clips_are_refused(tmp_path, held_out):
    with pytest.raises(ValueError, match="clip_sets: expected at least one set of clips, got none"):
        train_codec(tmp_path, SHORT, [], {"": held_out})


def test_a_video_that_is_not_finite_stops_the_run(tmp_path, clip_set, held_out, monkeypatch):
    monkeypatch.setattr(codec, "evaluate_codec", lambda *_: {})
    monkeypatch.setattr(codec, "to_float", lambda video: torch.full((len(video), 3, 5, 16, 16), torch.nan))
    with pytest.raises(FloatingPointError, match="loss is nan at step 0"):
        train_codec(tmp_path, SHORT, [clip_set], {"": held_out})


def test_random_crops_come_from_everywhere(clip_set):
    """Every crop is a window of some clip, and windows differ in time and place."""
    config = dataclasses.replace(SHORT, batch=40)
    crops = codec._random_crops([clip_set], config)
    assert crops.shape == (40, 3, 5, 16, 16)
    whole = torch.stack([clip_set.clip(number) for number in range(3)])
    windows = whole.unfold(2, 5, 1).unfold(3, 16, 1).unfold(4, 16, 1)  # [clips, 3, 5 starts, 17, 17, 5, 16, 16]
    places = set()
    for crop in crops:
        same = (windows[:, :, :, :, :, 0, 0, 0] == crop[:, 0, 0, 0].view(1, 3, 1, 1, 1)).all(1).nonzero()
        fits = [tuple(p.tolist()) for p in same if torch.equal(windows[p[0], :, p[1], p[2], p[3]], crop)]
        assert fits
        places.add(fits[0])
    for axis, count in enumerate((3, 5, 17, 17)):
        seen = {place[axis] for place in places}
        assert len(seen) > count // 2 and min(seen) >= 0 and max(seen) < count


def test_the_codec_learns(tmp_path, clip_set):
    """Forty steps from the linear codec: the average improves on what it was trained on, and the sheet shows it."""
    whole_clips = dataclasses.replace(SHORT, batch=3, crop=32, crop_frames=9)
    config = dataclasses.replace(whole_clips, steps=40, matrix_rate=0.05, rate=1e-2, gan_from=0.8, evaluate_every=100)
    train_codec(tmp_path, config, [clip_set], {"": clip_set.clip(0)[None]})
    with (tmp_path / "log.csv").open() as file:
        first, last = csv.DictReader(file)
    assert float(first["psnr"]) == pytest.approx(float(first["psnr_linear"]), abs=1e-3)
    assert float(last["psnr"]) > float(first["psnr"]) + 0.4
    assert float(last["critic"]) > 0
    assert Image.open(tmp_path / "samples.png").size == (9 * 32 * 2, 2 * 32 * 2)


def test_evaluation_of_a_perfect_codec_is_perfect(held_out):
    class Perfect:
        """Its latents are the video, behind three copies of the image where nothing is cut off."""

        def encode(self, video, linear_only=False):
            return video

        def decode(self, latents):
            return latents

        def reconstruct(self, latents, linear_only):
            return torch.cat([latents[:, :, :1].expand(-1, -1, 3, -1, -1), latents], 2) * 0.5

    scores = evaluate_codec(Perfect(), held_out)
    assert scores["psnr"] == 100 and scores["ssim"] == pytest.approx(1, abs=1e-5)
    assert scores["sharpness"] == pytest.approx(1, abs=1e-5)
    assert scores["psnr_linear"] < 20 and scores["ssim_linear"] < 0.95
