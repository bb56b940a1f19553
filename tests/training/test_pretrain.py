# SPDX-License-Identifier: Apache-2.0
"""Pre-training of a bidirectional model, and what its conversion is worth as the start of stage 1."""

from __future__ import annotations

import csv
import dataclasses
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor

from aapt_fast.models.aapt.convert import bidirectional, to_autoregressive
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.presets import NANO
from aapt_fast.models.vae.mini import MiniVAE, MiniVAEConfig
from aapt_fast.streaming.controls import clip_controls
from aapt_fast.training.clips import LatentClips
from aapt_fast.training.data import ClipSetConfig, held_out_clips
from aapt_fast.training.diffusion import DiffusionConfig, flow_matching_loss, train_diffusion
from aapt_fast.training.pretrain import HeldOutError, PretrainConfig, train_bidirectional
from aapt_fast.training.run import UNWATCHED, Watch
from aapt_fast.worlds.person.world import PersonWorld

SHORT = PretrainConfig(bidirectional(NANO), steps=6, batch=2, clip_frames=4, evaluate_every=3)
VELOCITY = dataclasses.replace(NANO, prediction="velocity", head_width=0, shift=1.0)
CLIPS = ClipSetConfig("nano", PersonWorld(identities=2), clips=12, frames=17, size=32)
TRAINED = 8  # of these clips; the others are held out


def latents(clips: int = 3, frames: int = 5) -> Tensor:
    return torch.randn(clips, 16, frames, 4, 4, generator=torch.Generator().manual_seed(3))


def train(
    folder: Path, config: PretrainConfig = SHORT, evaluate=lambda model: {}, watch: Watch = UNWATCHED
) -> Generator:
    return train_bidirectional(folder, config, latents(), torch.ones(16), evaluate, watch)


def test_interrupted_and_resumed_equals_straight_on(tmp_path):
    straight = train(tmp_path / "straight")

    evaluations = []

    def noting(model: Generator) -> dict[str, float]:
        evaluations.append(model)
        return {}

    watch = Watch(stop=lambda: nullcontext(lambda: len(evaluations) == 2))
    with pytest.raises(KeyboardInterrupt, match="stopped after step 4"):
        train(tmp_path / "resumed", evaluate=noting, watch=watch)
    resumed = train(tmp_path / "resumed")
    assert not resumed.training
    for name, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_the_model_sees_whole_noised_clips_and_nothing_else(tmp_path, monkeypatch):
    """Every frame of a clip at the clip's own t, clips cut at every place they can be."""
    seen = []

    def forward(model, noised, recycled, control, t, cache):
        assert recycled is None and control is None
        seen.append((noised, t))
        return noised + 0 * model.unpatch.weight.sum()

    monkeypatch.setattr(Generator, "forward", forward)
    index = torch.arange(5.0).view(1, 1, 5, 1, 1).expand(3, 16, 5, 4, 4)
    config = dataclasses.replace(SHORT, steps=30, model=dataclasses.replace(SHORT.model, shift=3.0))
    train_bidirectional(tmp_path, config, index, torch.ones(16), lambda model: {})
    noised, t = (torch.cat(tensors) for tensors in zip(*seen, strict=True))
    clean = noised.mean((1, 3, 4)) / (1 - t[:, None])
    firsts = clean[t < 0.5].mean(1) - 1.5
    assert {round(float(first)) for first in firsts} == {0, 1}
    assert ((noised[t < 0.5].var((1, 3, 4)).sqrt() / t[t < 0.5, None] - 1).abs() < 0.25).all()
    assert (t > 0).all() and (t < 1).all() and t.median() > 0.6  # shifted


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(model=NANO), "model: expected a bidirectional generator, got an autoregressive one"),
        (dict(clip_frames=6), r"clip_frames: expected 1\.\.5, the frames of a clip, got 6"),
        (dict(clip_frames=0), r"clip_frames: expected 1\.\.5, the frames of a clip, got 0"),
    ],
)
def test_what_cannot_be_trained_is_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", dataclasses.replace(SHORT, **change))
    assert not (tmp_path / "run").exists()


def test_the_held_out_error_is_that_of_the_clean_clip():
    """A velocity model without weights returns the noised clip, t (noise - clean) away from the clean one."""
    clips = 2 + latents()
    errors = HeldOutError(clips, levels=(0.25, 1.0))(Generator(bidirectional(VELOCITY)))
    noise = torch.randn(clips.shape, generator=torch.Generator().manual_seed(0))
    for level in (0.25, 1.0):
        expected = float((level * (noise - clips)).square().mean())
        assert errors[f"error_{level:g}"] == pytest.approx(expected, rel=1e-4)


@pytest.fixture(scope="module")
def world() -> tuple[Tensor, Tensor]:
    """Latents [clips, C, 5, 4, 4] of unit deviation, of rendered clips coded by the linear codec, and their points."""
    video, points = held_out_clips(CLIPS)
    torch.manual_seed(0)
    vae = MiniVAE(MiniVAEConfig(encoder_widths=(8, 8, 8), decoder_widths=(8, 8, 8)))
    vae.fit_linear(video[:, :, 1:])
    with torch.no_grad():
        coded = vae.encode(video)
    return coded / coded.std(), points


@torch.no_grad()
def stage_1_error(model: Generator, coded: Tensor, points: Tensor) -> float:
    """The loss of stage 1 over a few levels of noise, teacher-forced."""
    clean, recycled, total = coded[:, :, 1:], coded[:, :, :-1], 0.0
    control = clip_controls(points, NANO.control, NANO.grid)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(9))
    for level in (0.3, 0.6, 0.9, 1.0):
        noised, t = (1 - level) * clean + level * noise, torch.full((len(clean),), level)
        predicted = model(noised, recycled, control, t, model.new_cache())
        total += float(flow_matching_loss(predicted, clean, t, torch.ones(16), 0.3)) / 4
    return total


def test_pretraining_learns_and_gives_stage_1_a_head_start(tmp_path, world):
    """On clips that neither stage has seen. After the same steps stage 1 is ahead of a start from random weights."""
    coded, points = world
    config = PretrainConfig(bidirectional(VELOCITY), steps=100, batch=4, clip_frames=5, evaluate_every=50)
    pretrained = train_bidirectional(
        tmp_path / "pretrain", config, coded[:TRAINED], torch.ones(16), HeldOutError(coded[TRAINED:])
    )
    with (tmp_path / "pretrain" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    for level in ("error_0.25", "error_0.5", "error_0.75"):
        errors = [float(row[level]) for row in rows]
        assert errors == sorted(errors, reverse=True) and errors[-1] < 0.9 * errors[0]

    stage_1 = DiffusionConfig(VELOCITY, steps=20, batch=4, clip_frames=4, evaluate_every=100, compile=False)
    clips = LatentClips(coded[:TRAINED], points[:TRAINED], VELOCITY)
    torch.manual_seed(0)
    start = to_autoregressive(
        pretrained, VELOCITY.control, window=VELOCITY.window, control_width=VELOCITY.control_width
    )
    reached = {}
    for name, first in (("random", None), ("converted", start)):
        model = train_diffusion(tmp_path / name, stage_1, clips, torch.ones(16), lambda model: {}, first)
        reached[name] = stage_1_error(model, coded[TRAINED:], points[TRAINED:])
    assert reached["converted"] < 0.95 * reached["random"]
    assert reached["converted"] < stage_1_error(start, coded[TRAINED:], points[TRAINED:])


def test_a_start_of_another_configuration_is_refused(tmp_path):
    config = DiffusionConfig(NANO, steps=1, batch=2, clip_frames=4, compile=False)
    clips = LatentClips(latents(), torch.rand(3, 17, 19, 3), NANO)
    with pytest.raises(ValueError, match=r"start: expected a generator of GeneratorConfig\(.*window=2.*window=3"):
        start = Generator(dataclasses.replace(NANO, window=3))
        train_diffusion(tmp_path / "run", config, clips, torch.ones(16), lambda model: {}, start)
    assert not (tmp_path / "run").exists()


def test_stage_1_takes_the_weights_of_its_start_and_leaves_them_alone(tmp_path):
    start = Generator(dataclasses.replace(NANO, shift=2.0))
    before = {name: value.clone() for name, value in start.state_dict().items()}
    still = {"matrix_rate": 0.0, "rate": 0.0, "weight_decay": 0.0}
    config = DiffusionConfig(NANO, steps=1, batch=2, clip_frames=4, compile=False, **still)
    clips = LatentClips(latents(), torch.rand(3, 17, 19, 3), NANO)
    model = train_diffusion(tmp_path, config, clips, torch.ones(16), lambda model: {}, start)
    for name, value in before.items():
        assert torch.equal(start.state_dict()[name], value), name
        assert torch.equal(model.state_dict()[name], value), name
