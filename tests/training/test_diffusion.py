# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import dataclasses
import functools
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.presets import NANO
from aapt_fast.models.vae.mini import MiniVAE, MiniVAEConfig
from aapt_fast.streaming.controls import clip_controls
from aapt_fast.training.clips import LatentClips
from aapt_fast.training.data import ClipSetConfig, held_out_clips
from aapt_fast.training.diffusion import DiffusionConfig, decoder_sensitivity, flow_matching_loss, train_diffusion
from aapt_fast.training.run import UNWATCHED, Watch
from aapt_fast.worlds.person.world import PersonWorld

SHORT = DiffusionConfig(NANO, steps=6, batch=2, clip_frames=4, evaluate_every=3, recycled_noise=0.1, compile=False)
CLIPS = ClipSetConfig("nano", PersonWorld(identities=2), clips=4, frames=17, size=32)


def random_clips(clips: int = 3, frames: int = 5) -> LatentClips:
    """Latents [clips, 16, frames, 4, 4] and points [clips, 1 + 4 (frames - 1), 19, 3]."""
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(clips, 16, frames, 4, 4, generator=generator)
    return LatentClips(latents, torch.rand(clips, 4 * frames - 3, 19, 3, generator=generator), NANO)


def train(
    folder: Path, config: DiffusionConfig = SHORT, evaluate=lambda model: {}, watch: Watch = UNWATCHED
) -> Generator:
    return train_diffusion(folder, config, random_clips(), torch.ones(16), evaluate, watch=watch)


def checkpoint(folder: Path) -> dict:
    return torch.load(folder / "checkpoint.pt", weights_only=True)["state"]


def assert_same(actual, expected, name: str = "state") -> None:
    """Nested states, equal bit by bit."""
    if isinstance(expected, torch.Tensor):
        assert torch.equal(actual, expected), name
    elif isinstance(expected, dict):
        assert list(actual) == list(expected), name
        for key in expected:
            assert_same(actual[key], expected[key], f"{name}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected), name
        for number, (a, b) in enumerate(zip(actual, expected, strict=True)):
            assert_same(a, b, f"{name}.{number}")
    else:
        assert actual == expected, name


def test_interrupted_and_resumed_equals_straight_on(tmp_path):
    """Weights, averages and both optimisers, bit by bit."""
    straight = train(tmp_path / "straight")

    evaluations = []

    def noting(model: Generator) -> dict[str, float]:
        evaluations.append(model)
        return {}

    watch = Watch(stop=lambda: nullcontext(lambda: len(evaluations) == 2))
    with pytest.raises(KeyboardInterrupt, match="stopped after step 4"):
        train(tmp_path / "resumed", evaluate=noting, watch=watch)
    resumed = train(tmp_path / "resumed")
    assert_same(resumed.state_dict(), straight.state_dict())
    assert_same(checkpoint(tmp_path / "resumed"), checkpoint(tmp_path / "straight"))


def test_compiled_as_one_graph_it_trains_the_same_model(tmp_path, monkeypatch):
    """Captured whole and differentiated by AOTAutograd; what Inductor makes of it is left out, it takes a minute."""
    short = dataclasses.replace(SHORT, model=dataclasses.replace(NANO, layers=1), steps=3)
    eager = train(tmp_path / "eager", short)
    compiled = functools.partial(torch.compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", compiled)
    captured = train(tmp_path / "captured", dataclasses.replace(short, compile=True))
    torch.manual_seed(short.seed)
    start = Generator(short.model).state_dict()
    for name, weight in captured.state_dict().items():
        learnt = float((eager.state_dict()[name] - weight).norm())
        assert learnt <= 0.05 * float((weight - start[name]).norm()) + 1e-6, name


def test_another_seed_trains_another_model(tmp_path):
    one, other = train(tmp_path / "one"), train(tmp_path / "other", dataclasses.replace(SHORT, seed=1))
    assert not torch.equal(one.unpatch.weight, other.unpatch.weight)


def test_evaluations_see_the_average_and_the_result_is_the_average(tmp_path):
    seen: list[torch.Tensor] = []

    def evaluate(model: Generator) -> dict[str, float]:
        seen.append(model.unpatch.weight.detach().clone())
        return {"score": 1.0}

    result = train(tmp_path, evaluate=evaluate)
    state = checkpoint(tmp_path)
    assert len(seen) == 3  # at steps 0 and 3 and at the end
    assert torch.equal(seen[2], state["average"]["unpatch.weight"]) and torch.equal(seen[2], result.unpatch.weight)
    assert not torch.equal(state["model"]["unpatch.weight"], result.unpatch.weight)
    assert not result.training
    with (tmp_path / "log.csv").open() as file:
        assert [(row["step"], row["score"]) for row in csv.DictReader(file)] == [
            (step, "1.0") for step in ("0", "3", "6")
        ]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    clips = random_clips()
    clips.latents[:] = torch.nan
    with pytest.raises(FloatingPointError, match="loss is nan at step 0"):
        train_diffusion(tmp_path, SHORT, clips, torch.ones(16), lambda model: {})


@pytest.mark.parametrize(
    ("clip_frames", "message"),
    [
        (5, "clip_frames: expected at most 4, the frames of a clip, got 5"),
        (3, r"clip_frames: expected at least 4 \(window and sink\), got 3"),
    ],
)
def test_clips_that_are_too_short_are_refused(tmp_path, clip_frames, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", dataclasses.replace(SHORT, clip_frames=clip_frames))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("share_at_one", [0.0, 0.25, 1.0])
def test_timesteps_and_recycled_noise(tmp_path, monkeypatch, share_at_one):
    """Of the recycled frames only the first one, the image, is always without noise."""
    seen = []

    def forward(model, noised, recycled, control, t, cache):
        seen.append((recycled, t))
        return recycled + 0 * model.unpatch.weight.sum()

    monkeypatch.setattr(Generator, "forward", forward)
    clips = random_clips()
    clips.latents[:] = 1.0
    config = dataclasses.replace(SHORT, steps=40, batch=8, share_at_one=share_at_one)
    train_diffusion(tmp_path, config, clips, torch.ones(16), lambda model: {})
    recycled, t = (torch.cat(tensors) for tensors in zip(*seen, strict=True))
    assert float((t == 1).float().mean()) == pytest.approx(share_at_one, abs=0.08)
    assert (recycled[:, :, 0] == 1).all() and (recycled[:, :, 1:] != 1).float().mean() > 0.99
    assert recycled[:, :, 1:].std() < 0.1


def gaussian_pair(t: float, deviation: float, count: int = 40_000) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Clean numbers from N(0, deviation^2), noised ones, and t, shaped as frames [count, 1, 1, 1, 1]."""
    clean = deviation * torch.randn(count, 1, 1, 1, 1)
    return clean, (1 - t) * clean + t * torch.randn_like(clean), torch.full((count,), t)


@pytest.mark.parametrize("deviation", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("t", [0.1, 0.3, 0.7, 1.0])
def test_the_best_predictor_reaches_the_known_least_loss(t, deviation):
    """E[x0 | x_t] has error deviation^2 t^2 / variance(x_t); the loss divides by max(t, 0.3)^2."""
    clean, noised, times = gaussian_pair(t, deviation)
    variance = (1 - t) ** 2 * deviation**2 + t**2
    gain = (1 - t) * deviation**2 / variance

    def loss(predicted: torch.Tensor) -> float:
        return float(flow_matching_loss(predicted, clean, times, torch.ones(1), 0.3))

    least = deviation**2 * t**2 / variance / max(t, 0.3) ** 2
    standard_error = least * (2 / len(clean)) ** 0.5  # the mean of squared normal numbers
    assert abs(loss(gain * noised) - least) < 4 * standard_error
    if t < 1:
        assert loss(1.5 * gain * noised) > least < loss(0.5 * gain * noised)


@pytest.mark.parametrize("t", [0.3, 0.8, 1.0])
def test_the_loss_is_the_error_of_the_velocity(t):
    clean, noised, times = gaussian_pair(t, 1.0, count=50)
    eps = (noised - (1 - t) * clean) / t
    predicted = torch.randn_like(clean)
    velocity_error = ((noised - predicted) / t - (eps - clean)).square().mean()
    loss = flow_matching_loss(predicted, clean, times, torch.ones(1), 0.3)
    assert float(loss) == pytest.approx(float(velocity_error), rel=1e-4)


def test_channels_and_clips_are_weighed():
    clean, predicted = torch.zeros(2, 2, 1, 1, 1), torch.ones(2, 2, 1, 1, 1)
    loss = flow_matching_loss(predicted, clean, torch.tensor([0.5, 1.0]), torch.tensor([3.0, 1.0]), 0.3)
    assert float(loss) == pytest.approx((4 * 3 + 4 * 1 + 3 + 1) / 4)


def test_decoder_sensitivity_is_the_effect_of_each_channel():
    gains = torch.tensor([1.0, 4.0, 0.25])
    weights = decoder_sensitivity(lambda z: z * gains.view(1, -1, 1, 1, 1), torch.randn(4, 3, 5, 16, 16))
    assert weights.tolist() == pytest.approx((gains / gains.mean()).tolist(), rel=0.05)


def test_the_nano_model_learns_the_world(tmp_path):
    """Sixty steps on rendered clips, coded by the linear codec, against the start and against a repeated frame."""
    video, points = held_out_clips(CLIPS)
    vae = MiniVAE(MiniVAEConfig(encoder_widths=(8, 8, 8), decoder_widths=(8, 8, 8)))
    vae.fit_linear(video[:, :, 1:])
    with torch.no_grad():
        latents = vae.encode(video)
    torch.manual_seed(0)
    probe = torch.randn_like(latents[:, :, 1:])
    controls, recycled, clean = clip_controls(points, NANO.control, NANO.grid), latents[:, :, :-1], latents[:, :, 1:]
    errors: list[float] = []

    @torch.no_grad()
    def evaluate(model: Generator) -> dict[str, float]:
        predicted = model(probe, recycled, controls, torch.ones(len(probe)), model.new_cache())
        errors.append(float((predicted - clean).square().mean()))
        return {"error": errors[-1]}

    config = DiffusionConfig(NANO, steps=60, batch=4, clip_frames=4, evaluate_every=20, compile=False)
    train_diffusion(tmp_path, config, LatentClips(latents, points, NANO), torch.ones(16), evaluate)
    still = float((clean - recycled).square().mean())
    assert errors[1] > errors[2] > errors[3]
    assert errors[3] < 0.9 * still
