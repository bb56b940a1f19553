# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
from contextlib import nullcontext

import pytest
import torch

from aapt_fast.models.aapt.discriminator import Discriminator
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.presets import NANO
from aapt_fast.ops import philox_normal
from aapt_fast.testing.compare import assert_near
from aapt_fast.training import adversarial
from aapt_fast.training.adversarial import AdversarialConfig, Segment, draw_viewing, roll_out, train_adversarial
from aapt_fast.training.clips import Batch, LatentClips
from aapt_fast.training.rollout import rollout
from aapt_fast.training.run import UNWATCHED, TrainingRun, Watch

SHORT = AdversarialConfig(
    NANO,
    steps=6,
    batch=2,
    segment_frames=3,
    segments=2,
    adversarial=0.1,
    discriminator_alone=2,
    evaluate_every=3,
)


def clips() -> LatentClips:
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(4, 16, 4, 4, 4, generator=generator)
    return LatentClips(latents, torch.rand(4, 13, 19, 3, generator=generator), NANO, torch.zeros(4))


def random_generator() -> Generator:
    torch.manual_seed(1)
    model = Generator(NANO)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        model.skip.copy_(torch.tensor([0.3, 0.4]))
    return model


def batch_of(rows: int = 2, frames: int = 6) -> Batch:
    clean = torch.randn(rows, 16, frames, 4, 4)
    recycled = torch.cat([torch.randn(rows, 16, 1, 4, 4), clean[:, :, :-1]], 2)
    return Batch(clean, recycled, torch.randn(rows, NANO.control.step_channels, frames, 4, 4))


def train(folder, config=SHORT, evaluate=lambda model: {}, watch=UNWATCHED) -> Generator:
    start = random_generator()
    return train_adversarial(folder, config, start, start, clips(), torch.ones(16), evaluate, watch)


def checkpoint(folder) -> dict:
    return torch.load(folder / "checkpoint.pt", weights_only=True)["state"]


# ---- the rollout ----


@pytest.mark.parametrize("segment_frames", [2, 3, 6])
def test_the_rollout_is_what_a_session_plays(segment_frames, monkeypatch):
    """The same noise as `rollout`, which tests hold equal to a session; however it is cut into segments."""
    monkeypatch.setattr(adversarial.torch, "autocast", lambda *_, **__: torch.no_grad())
    model, batch, seeds = random_generator(), batch_of(), torch.tensor([5, -7])
    steps = torch.arange(1, 7)
    noise = torch.stack([philox_normal(seeds, step.expand(2), (16, 4, 4)) for step in steps], 2)
    with torch.no_grad():
        expected = rollout(model, batch.recycled[:, :, :1], batch.control, seeds)
        made = torch.cat([segment.fake for segment in roll_out(model, batch, noise, segment_frames)], 2)
    assert_near(made, expected, 1e-6)


def test_segments_hold_the_frames_of_the_same_moments():
    batch = batch_of()
    first, second = roll_out(random_generator(), batch, torch.randn_like(batch.clean), 3, overlap=2)
    assert (first.overlap, second.overlap) == (0, 2) and second.fake.shape[2] == 5
    assert torch.equal(second.fake[:, :, :2], first.fake[:, :, 1:].detach())
    assert torch.equal(first.fake_previous[:, :, 0], batch.recycled[:, :, 0])
    for segment, span in ((first, slice(0, 3)), (second, slice(1, 6))):
        assert torch.equal(segment.real, batch.clean[:, :, span])
        assert torch.equal(segment.real_previous, batch.recycled[:, :, span])
        assert torch.equal(segment.control, batch.control[:, :, span])
        assert torch.equal(segment.fake_previous[:, :, 1:], segment.fake[:, :, :-1].detach())


def gradient_of_noise(segment_frames: int) -> torch.Tensor:
    """Mean size of the gradient of frame 4 with respect to the noise of each frame, [6]."""
    model, batch = random_generator().requires_grad_(False), batch_of()
    noise = torch.randn_like(batch.clean).requires_grad_(True)
    segments = list(roll_out(model, batch, noise, segment_frames))
    made = torch.cat([segment.fake for segment in segments], 2)
    (gradient,) = torch.autograd.grad(made[:, :, 3].sum(), noise)
    return gradient.abs().mean((0, 1, 3, 4))


def test_gradients_flow_through_the_cache_inside_a_segment():
    size = gradient_of_noise(segment_frames=6)
    assert (size[:4] > 0).all() and (size[4:] == 0).all()
    assert size[2] < size[3]  # through keys and values only: the recycled frame gives none


def test_a_detached_cache_gives_exactly_no_gradient_to_earlier_noise():
    size = gradient_of_noise(segment_frames=3)
    assert (size[:3] == 0).all() and size[3] > 0 and (size[4:] == 0).all()


def test_the_recycled_frame_gives_no_gradient():
    """With a network that looks at nothing but the recycled frame, only a frame's own noise counts."""
    model = random_generator().requires_grad_(False)
    model.unpatch.weight.zero_()
    model.head.conv_in.weight[:, : 8 + 16].zero_()
    noise, batch = torch.randn(1, 16, 3, 4, 4).requires_grad_(True), batch_of(1, 3)
    (segment,) = roll_out(model, batch, noise, 3)
    (gradient,) = torch.autograd.grad(segment.fake[:, :, 2].sum(), noise)
    assert (gradient[:, :, :2] == 0).all() and (gradient[:, :, 2] != 0).any()


def test_a_frozen_rollout_records_nothing():
    batch = batch_of()
    segments = list(roll_out(random_generator(), batch, torch.randn_like(batch.clean), 3, frozen=True))
    assert not any(segment.fake.requires_grad for segment in segments)


# ---- the losses ----


def segment_of(fake: torch.Tensor, real: torch.Tensor, overlap: int = 0) -> Segment:
    control = torch.randn(len(real), NANO.control.step_channels, real.shape[2], 4, 4)
    return Segment(overlap, fake, torch.randn_like(real), real, torch.randn_like(real), control)


@pytest.fixture
def run(tmp_path) -> TrainingRun:
    return TrainingRun(tmp_path / "run", SHORT, {})


@pytest.mark.parametrize("whole_clip", [False, True])
@pytest.mark.parametrize("noised", [False, True])
def test_fakes_and_reals_are_judged_alike(whole_clip, noised):
    """The same frames with the same past get the same logits, and the overlap gets none."""
    frames = torch.randn(2, 16, 5, 4, 4)
    segment = dataclasses.replace(segment_of(frames, frames, overlap=2))
    segment = dataclasses.replace(segment, real_previous=segment.fake_previous)
    torch.manual_seed(0)
    judge = Discriminator(NANO, whole_clip=whole_clip)
    viewing = draw_viewing(segment, dataclasses.replace(SHORT, noised=noised))
    fake, real = adversarial.judge(judge, segment, viewing)
    assert fake.shape == (2, 1 if whole_clip else 3)
    assert_near(fake, real, 1e-5)


def test_the_reconstruction_leaves_the_overlap_out(run):
    real = torch.randn(2, 16, 5, 4, 4)
    fake = real.clone()
    fake[:, :, :2] += 100
    fake[:, :, 2:] += 0.5
    weights = torch.cat([torch.full((8,), 1.5), torch.full((8,), 0.5)])
    config = dataclasses.replace(SHORT, adversarial=0.0, reconstruction=2.0)
    pull = adversarial.generator_pull(Discriminator(NANO), segment_of(fake, real, 2), config, weights, run)
    assert (pull[:, :, :2] == 0).all()
    per_value = 2.0 * 2 * 0.5 / fake[:, :, 2:].numel()  # of 2 * mean(weights * difference^2)
    assert_near(pull[:, :, 2:], (per_value * weights).view(1, -1, 1, 1, 1).expand(2, 16, 3, 4, 4), 1e-6)


def test_the_refinement_pulls_at_the_reading_and_leaves_the_overlap_out(run):
    fake, weights = torch.randn(2, 16, 5, 4, 4), torch.rand(16)
    config = dataclasses.replace(SHORT, adversarial=0.0, reconstruction=0.0, refinement=2.0)
    segment, reading = segment_of(fake, torch.randn_like(fake), 2), torch.randn(2, 16, 3, 4, 4)
    pull = adversarial.generator_pull(Discriminator(NANO), segment, config, weights, run, reading)
    assert (pull[:, :, :2] == 0).all()
    assert_near(
        pull[:, :, 2:], 2.0 * 2 * weights.view(1, -1, 1, 1, 1) * (fake[:, :, 2:] - reading) / reading.numel(), 1e-6
    )


def pulls(run, **options) -> torch.Tensor:
    torch.manual_seed(4)
    segment, judge = segment_of(torch.randn(2, 16, 5, 4, 4), torch.randn(2, 16, 5, 4, 4), 2), Discriminator(NANO)
    torch.manual_seed(5)  # t
    config = dataclasses.replace(SHORT, **options)
    return adversarial.generator_pull(judge, segment, config, torch.ones(16), run)


def test_the_pull_is_the_weighted_sum_of_both_and_nothing_pulls_at_the_overlap(run):
    reconstruction = pulls(run, reconstruction=1.0, adversarial=0.0)
    alone = pulls(run, reconstruction=0.0, adversarial=1.0)
    assert (alone[:, :, :2] == 0).all() and (alone[:, :, 2:] != 0).any()
    both = pulls(run, reconstruction=0.3, adversarial=0.2)
    assert_near(both, 0.3 * reconstruction + 0.2 * alone, 1e-6)


@pytest.mark.parametrize("share", [0.25, 2.0])
def test_balanced_pulls_have_the_asked_ratio(share, run):
    reconstruction = pulls(run, reconstruction=0.3, adversarial=0.0)
    both = pulls(run, reconstruction=0.3, adversarial=share, balanced=True)
    assert float((both - reconstruction).norm() / reconstruction.norm()) == pytest.approx(share, rel=1e-4)


@pytest.mark.parametrize("field", ["penalty", "adversarial", "reconstruction"])
def test_every_weight_may_be_zero(field, tmp_path):
    train(tmp_path, dataclasses.replace(SHORT, steps=3, **{field: 0.0}))


NO_DISTANCE = "as reconstruction and refinement are 0"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adversarial": 0.0, "reconstruction": 0.0}, f"adversarial: expected a weight above 0, {NO_DISTANCE}, got 0"),
        ({"balanced": True, "reconstruction": 0.0}, f"balanced: expected False, {NO_DISTANCE}, got True"),
        ({"refinement_levels": (0.6, 0.3)}, r"refinement_levels: expected two ascending levels .*, got \(0.6, 0.3\)"),
        ({"refinement_levels": (0.0, 0.3)}, r"refinement_levels: expected two ascending levels .*, got \(0.0, 0.3\)"),
    ],
)
def test_settings_that_cannot_train_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", dataclasses.replace(SHORT, **options))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"balanced": True},
        {"exact_penalties": True, "penalty": 10.0},
        {"whole_clip": True},
        {"noised": True, "discriminator_shift": 0.5},
        {"optimiser": "adam"},
        {"reconstruction": 0.0, "refinement": 1.0, "balanced": True},
    ],
    ids=lambda options: ", ".join(options),
)
def test_every_switch_trains_both_networks(options, tmp_path):
    start = random_generator()
    result = train(tmp_path, dataclasses.replace(SHORT, **options))
    assert not torch.equal(result.unpatch.weight, start.unpatch.weight)
    fresh = Discriminator(NANO, whole_clip=SHORT.whole_clip)
    fresh.start_from(start)
    trained = checkpoint(tmp_path)["discriminator"]
    assert not torch.equal(trained["trunk.patch_embed.weight"], fresh.trunk.patch_embed.weight)
    assert all(value.isfinite().all() for value in trained.values())


def test_a_penalty_holds_the_discriminators_slope_down(tmp_path):
    """The same run with and without: how much logits differ between frames and their disturbed copies."""

    def slope(penalty: float) -> float:
        folder = tmp_path / str(penalty)
        options = {"steps": 12, "discriminator_alone": 12, "penalty": penalty, "discriminator_rate": 3e-3}
        train(folder, dataclasses.replace(SHORT, **options))
        model = Discriminator(NANO)
        model.load_state_dict(checkpoint(folder)["discriminator"])
        torch.manual_seed(0)
        frames, previous = torch.randn(2, 8, 16, 3, 4, 4)
        control = torch.randn(8, NANO.control.step_channels, 3, 4, 4)
        t = torch.full((8,), 0.5)
        with torch.no_grad():
            near = model(frames + 0.1 * torch.randn_like(frames), previous, control, t)
            return float((model(frames, previous, control, t) - near).square().mean())

    assert slope(1000.0) < 0.5 * slope(0.0)


# ---- the run ----


def test_the_discriminator_learns_alone_first(tmp_path):
    start = random_generator()
    result = train(tmp_path, dataclasses.replace(SHORT, steps=3, discriminator_alone=3))
    assert all(torch.equal(value, start.state_dict()[name]) for name, value in result.state_dict().items())
    fresh = Discriminator(NANO)
    fresh.start_from(start)
    trained = checkpoint(tmp_path)["discriminator"]
    assert not torch.equal(trained["trunk.patch_embed.weight"], fresh.trunk.patch_embed.weight)


def test_a_discriminator_can_tell_noise_from_frames(tmp_path):
    """Against a generator that makes noise, the gap between real and generated logits opens."""
    gaps = []
    track = TrainingRun.track

    def spy(run, **values):
        gaps.extend(float(value.detach()) for name, value in values.items() if name == "gap")
        track(run, **values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingRun, "track", spy)
        options = {"steps": 30, "discriminator_alone": 30, "penalty": 0.1, "discriminator_rate": 2e-3, "batch": 4}
        train(tmp_path, dataclasses.replace(SHORT, **options))
    assert sum(gaps[-5:]) / 5 > 5 * abs(sum(gaps[:3]) / 3) and gaps[-1] > 0.3


def test_interrupted_and_resumed_equals_straight_on(tmp_path):
    """Generator, discriminator and both optimisers, bit by bit."""
    straight = train(tmp_path / "straight")

    stops = ["stop"]
    with pytest.raises(KeyboardInterrupt, match="stopped after step 0"):
        train(tmp_path / "resumed", watch=Watch(stop=lambda: nullcontext(lambda: bool(stops))))
    stops.clear()

    def stop_soon(model: Generator) -> dict[str, float]:
        stops.append("stop")
        return {}

    with pytest.raises(KeyboardInterrupt, match="stopped after step 1"):
        train(tmp_path / "resumed", evaluate=stop_soon, watch=Watch(stop=lambda: nullcontext(lambda: bool(stops))))
    resumed = train(tmp_path / "resumed")
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    one, other = (checkpoint(tmp_path / name)["discriminator"] for name in ("straight", "resumed"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_reconstruction_alone_learns_the_clips(tmp_path):
    """Student forcing as a plain regression: the distance of whole rollouts to the truth falls."""
    set_of_clips, errors = clips(), []
    controls = set_of_clips.sample(4, 3, 1.0)

    @torch.no_grad()
    def evaluate(model: Generator) -> dict[str, float]:
        made = rollout(model, controls.recycled[:, :, :1], controls.control, torch.arange(4))
        errors.append(float((made - controls.clean).square().mean()))
        return {}

    config = dataclasses.replace(SHORT, steps=40, adversarial=0.0, segments=1, matrix_rate=0.02, rate=4e-3)
    start = random_generator()
    train_adversarial(tmp_path, config, start, start, set_of_clips, torch.ones(16), evaluate)
    assert errors[-1] < 0.9 * errors[0]


def test_refinement_alone_learns_to_draw_what_the_teacher_reads(tmp_path, monkeypatch):
    errors = []
    track = TrainingRun.track

    def spy(run, **values):
        errors.extend(float(value.detach()) for name, value in values.items() if name == "refinement")
        track(run, **values)

    monkeypatch.setattr(TrainingRun, "track", spy)
    config = dataclasses.replace(SHORT, steps=40, adversarial=0.0, reconstruction=0.0, refinement=1.0, rate=4e-3)
    train(tmp_path, config)
    assert sum(errors[-10:]) < 0.7 * sum(errors[:10])


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    set_of_clips = clips()
    set_of_clips.latents[:] = torch.nan
    start = random_generator()
    with pytest.raises(FloatingPointError, match="dynamic_degree is nan at step 0"):
        train_adversarial(tmp_path, SHORT, start, start, set_of_clips, torch.ones(16), lambda model: {})


@pytest.mark.parametrize(("factor", "reported"), [(0.0, True), (1.0, False), (100.0, True)])
def test_a_still_and_noise_are_reported(factor, reported, run, capsys):
    real = torch.randn(2, 16, 3, 4, 4)
    previous = torch.randn_like(real)
    fake = previous + factor * torch.randn_like(real)
    segment = Segment(0, fake, previous, real, previous, torch.zeros(2, 1, 3, 4, 4))
    adversarial.watch_motion([segment], run)
    printed = capsys.readouterr()
    assert ("times as much as the true one" in printed.out + printed.err) == reported


def segment_of_one_value(rows: int) -> Segment:
    return Segment(0, *torch.zeros(5, rows, 1, 1, 1, 1))


def test_t_of_the_discriminator_is_uniform_and_never_zero():
    t = draw_viewing(segment_of_one_value(20_000), SHORT).t
    assert t.min() >= 1e-3 and t.max() <= 1
    assert t.quantile(torch.tensor([0.1, 0.5, 0.9])).tolist() == pytest.approx([0.1, 0.5, 0.9], abs=0.02)


def test_a_shift_below_one_draws_more_small_t():
    config = dataclasses.replace(SHORT, discriminator_shift=0.5)
    assert float(draw_viewing(segment_of_one_value(20_000), config).t.median()) == pytest.approx(1 / 3, abs=0.02)


def test_frames_are_shown_noised_to_t_with_the_noise_of_their_place():
    """Between the frames, at t = 0, and noise alone, at t = 1; the frames before have a noise of their own."""
    segment = segment_of(torch.randn(3, 16, 2, 4, 4), torch.randn(3, 16, 2, 4, 4))
    viewing = draw_viewing(segment, dataclasses.replace(SHORT, noised=True))
    viewing = dataclasses.replace(viewing, t=torch.tensor([0.0, 0.25, 1.0]))
    frames, previous = viewing.show(segment.fake, segment.fake_previous)
    assert torch.equal(frames[0], segment.fake[0]) and torch.equal(previous[0], segment.fake_previous[0])
    assert_near(frames[1], 0.75 * segment.fake[1] + 0.25 * viewing.noise[0, 1], 1e-6)
    assert torch.equal(frames[2], viewing.noise[0, 2]) and torch.equal(previous[2], viewing.noise[1, 2])
    assert not torch.equal(viewing.noise[0], viewing.noise[1])
    assert draw_viewing(segment, SHORT).show(segment.fake, segment.fake_previous)[0] is segment.fake


def test_an_unknown_optimiser_is_refused(tmp_path):
    with pytest.raises(ValueError, match="optimiser: expected muon or adam, got sgd"):
        train(tmp_path / "run", dataclasses.replace(SHORT, optimiser="sgd"))
    assert not (tmp_path / "run").exists()
