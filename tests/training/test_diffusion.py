# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import dataclasses
import signal
from pathlib import Path

import pytest
import torch

from aapt_fast.models.config import MiniVAEConfig
from aapt_fast.models.generator import Generator
from aapt_fast.models.mini_vae import MiniVAE
from aapt_fast.models.presets import NANO, NANO_TEXT
from aapt_fast.streaming.controls import clip_controls
from aapt_fast.training import diffusion
from aapt_fast.training.data import ClipSetConfig, make_clip, to_float
from aapt_fast.training.diffusion import DiffusionConfig, decoder_sensitivity, flow_matching_loss, train_diffusion

SHORT = DiffusionConfig(NANO, steps=6, batch=2, clip_frames=4, evaluate_every=3, recycled_noise=0.1)
CLIPS = ClipSetConfig("nano", clips=4, frames=17, size=32, identities=2)


def random_clips(clips: int = 3, frames: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents [clips, 16, frames, 4, 4] and points [clips, 1 + 4 (frames - 1), 19, 3]."""
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(clips, 16, frames, 4, 4, generator=generator)
    return latents, torch.rand(clips, 4 * frames - 3, 19, 3, generator=generator)


def train(folder: Path, config: DiffusionConfig = SHORT, evaluate=lambda model: {}) -> Generator:
    return train_diffusion(folder, config, *random_clips(), torch.ones(16), evaluate)


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

    def interrupting(model: Generator) -> dict[str, float]:
        signal.raise_signal(signal.SIGTERM)
        return {}

    with pytest.raises(KeyboardInterrupt, match="stopped at step 4"):
        train(tmp_path / "resumed", evaluate=interrupting)
    resumed = train(tmp_path / "resumed")
    assert_same(resumed.state_dict(), straight.state_dict())
    assert_same(checkpoint(tmp_path / "resumed"), checkpoint(tmp_path / "straight"))


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
    assert len(seen) == 2  # at step 3 and at the end
    assert torch.equal(seen[1], state["average"]["unpatch.weight"]) and torch.equal(seen[1], result.unpatch.weight)
    assert not torch.equal(state["model"]["unpatch.weight"], result.unpatch.weight)
    assert not result.training
    with (tmp_path / "log.csv").open() as file:
        assert [(row["step"], row["score"]) for row in csv.DictReader(file)] == [("3", "1.0"), ("6", "1.0")]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    latents, points = random_clips()
    latents[:] = torch.nan
    with pytest.raises(FloatingPointError, match="loss is nan at step 0"):
        train_diffusion(tmp_path, SHORT, latents, points, torch.ones(16), lambda model: {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z, p: (z[:0], p[:0], {}), "latents: expected at least one clip, got an empty set"),
        (lambda z, p: (z, p[:2], {}), "points: expected 3 clips, got 2"),
        (lambda z, p: (z, p[:, :-1], {}), "points: expected 17 video frames, got 16"),
        (lambda z, p: (z, p, dict(clip_frames=5)), "clip_frames: expected at most 4, the frames of a clip, got 5"),
        (lambda z, p: (z, p, dict(clip_frames=3)), r"clip_frames: expected at least 4 \(window and sink\), got 3"),
        (lambda z, p: (z, p, dict(model=NANO_TEXT)), "model.control: expected a pose control, got None"),
    ],
    ids=["no clips", "clips", "video frames", "too long", "too short", "no control"],
)
def test_clips_that_do_not_fit_are_refused(tmp_path, change, message):
    latents, points, fields = change(*random_clips())
    config = dataclasses.replace(SHORT, **fields)
    with pytest.raises(ValueError, match=message):
        train_diffusion(tmp_path / "run", config, latents, points, torch.ones(16), lambda generator: {})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("share_at_start", [0.0, 0.5, 1.0])
def test_batches_are_spans_of_consecutive_frames(tmp_path, monkeypatch, share_at_start):
    """All of latent frame i is i: the recycled frame is the one before, and spans begin where they should."""
    seen = []

    def forward(model, noised, recycled, control, t, cache):
        seen.append((recycled[:, 0, :, 0, 0], control, t))
        return recycled + 0 * model.unpatch.weight.sum()

    def loss(predicted, clean, t, channel_weights, smallest_t):
        starts.append(int(clean[0, 0, 0, 0, 0]))
        assert torch.equal(clean[:, 0, :, 0, 0], seen[-1][0] + 1)
        assert torch.equal(clean[:, 0, :, 0, 0], starts[-1] + torch.arange(4.0).expand(8, -1))
        return predicted.mean()

    starts: list[int] = []
    monkeypatch.setattr(Generator, "forward", forward)
    monkeypatch.setattr(diffusion, "flow_matching_loss", loss)
    latents = torch.arange(8.0).view(1, 1, 8, 1, 1).expand(3, 16, -1, 4, 4)
    config = DiffusionConfig(NANO, steps=60, batch=8, clip_frames=4, share_at_one=0.25)
    config = dataclasses.replace(config, share_at_start=share_at_start)
    train_diffusion(tmp_path, config, latents, random_clips(frames=8)[1], torch.ones(16), lambda model: {})
    share = sum(start == 1 for start in starts) / len(starts)
    assert share == pytest.approx(share_at_start + (1 - share_at_start) / 4, abs=0.15)  # one of 4 places is the start
    assert set(starts) == ({1} if share_at_start == 1 else {1, 2, 3, 4})
    assert float((torch.cat([t for _, _, t in seen]) == 1).float().mean()) == pytest.approx(0.25, abs=0.07)
    untold = [(control[:, 300:, 0] == 0).all((1, 2, 3)) for _, control, _ in seen]  # the pose of the recycled frame
    assert float(torch.cat(untold).float().mean()) == pytest.approx(share * config.drop_first_pose, abs=0.06)
    assert all((control[:, :300, 0] != 0).any() for _, control, _ in seen)


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
    made = [make_clip(CLIPS, number) for number in range(CLIPS.clips)]
    video, points = to_float(torch.stack([clip for clip, _ in made])), torch.stack([points for _, points in made])
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

    config = DiffusionConfig(NANO, steps=60, batch=4, clip_frames=4, evaluate_every=20)
    train_diffusion(tmp_path, config, latents, points, torch.ones(16), evaluate)
    still = float((clean - recycled).square().mean())
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.9 * still
