# SPDX-License-Identifier: Apache-2.0
"""The eyes of the evaluation: exact in closed form, better than a guess after seconds, the same again from the file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from aapt_fast.testing.compare import assert_near
from aapt_fast.training import pose_network
from aapt_fast.training.pose_network import (
    PoseNetwork,
    PoseNetworkConfig,
    centre_of_mass,
    joint_distance,
    pose_reader,
    reader_path,
    render_frames,
    train_pose_network,
)
from aapt_fast.training.recipes import (
    FIRST_FRAMES,
    GALLERY_CLIPS,
    HELD_OUT,
    HELD_OUT_GALLERY,
    HELD_OUT_STRANGERS,
    STRANGERS_CLIPS,
)

SMALL = PoseNetworkConfig(size=32, widths=(8, 16, 16), clips=40, held_out=8, frames=6, steps=60, batch=16, rate=1e-2)
TINY = dataclasses.replace(SMALL, widths=(4, 4, 4), clips=2, held_out=1, frames=2, steps=2, batch=2)


def test_the_centre_of_a_sharp_peak_is_the_middle_of_its_cell() -> None:
    heat = torch.zeros(1, 2, 8, 8)
    heat[0, 0, 1, 6] = heat[0, 1, 3, 2] = heat[0, 1, 4, 2] = 200.0
    expected = torch.tensor([[[6.5 / 8, 1.5 / 8], [2.5 / 8, 4 / 8]]])
    assert_near(centre_of_mass(heat), expected, 1e-6)


def test_the_distance_is_in_pixels_and_ignores_depth() -> None:
    seen = torch.zeros(2, 19, 2)
    asked = torch.zeros(2, 19, 3)
    asked[0, :, 0], asked[0, :, 1], asked[..., 2] = 3 / 96, 4 / 96, 7.0
    assert_near(joint_distance(seen, asked, 96), torch.tensor([5.0, 0.0]), 1e-6)


def test_it_learns_to_see(tmp_path: Path) -> None:
    """Held-out strangers: much closer than the best constant answer, and features that differ between frames."""
    reader = pose_reader(SMALL, tmp_path)
    frames, points = render_frames(SMALL, SMALL.held_out, 8, tmp_path)
    constant = render_frames(SMALL, SMALL.clips, 7, tmp_path)[1].mean(0)
    guess = float(joint_distance(constant.expand_as(points), points, SMALL.size).mean())
    assert reader.error < 0.75 * guess
    video = (frames.float() / 127.5 - 1).unflatten(0, (2, -1)).transpose(1, 2)
    joints, features = reader.see(video)
    assert joints.shape == (2, len(frames) // 2, 19, 2) and features.shape == (2, len(frames) // 2, 64)
    assert features.dtype == torch.float32 and float(features.std(1).mean()) > 1e-3
    assert float(joint_distance(joints.flatten(0, 1), points, SMALL.size).mean()) == pytest.approx(reader.error, 1e-4)
    assert_near(reader.see(video[1:])[0], joints[1:], 1e-4, "one clip on its own")


def test_training_is_deterministic_and_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    torch.manual_seed(3)
    first = train_pose_network(TINY, tmp_path)
    drawn = torch.rand(4)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(4))
    again, other = (train_pose_network(dataclasses.replace(TINY, seed=seed), tmp_path) for seed in (0, 1))
    for a, b in zip(first.network.state_dict().values(), again.network.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert first.error == again.error != other.error


def test_it_is_trained_once_per_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = pose_reader(TINY, tmp_path / "new")
    monkeypatch.setattr(pose_network, "train_pose_network", lambda *_: pytest.fail("trained again"))
    kept = pose_reader(TINY, tmp_path / "new")
    video = torch.rand(1, 3, 2, 32, 32) * 2 - 1
    assert kept.error == trained.error and torch.equal(kept.see(video)[0], trained.see(video)[0])
    assert [path.name for path in (tmp_path / "new").iterdir()] == [reader_path(TINY, tmp_path).name]
    others = {reader_path(dataclasses.replace(TINY, **{name: 64}), tmp_path) for name in ("size", "steps", "seed")}
    assert len(others | {reader_path(TINY, tmp_path)}) == 4


def test_a_failed_write_leaves_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next call renders nothing and trains again."""

    def interrupted(path: Path, content: object) -> None:
        torch.save(content, path.with_name(".pose.partial.pt"))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pose_network, "save_finite", interrupted)
        pose_reader(TINY, tmp_path)
    assert not reader_path(TINY, tmp_path).exists()
    monkeypatch.setattr(pose_network, "render", lambda *_: pytest.fail("rendered again"))
    assert pose_reader(TINY, tmp_path).error > 0


def test_a_stopped_rendering_resumes_with_the_missing_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = render_frames(TINY, 3, 7, tmp_path / "at once")
    render, calls = pose_network.render, []

    def stopped(*given: object) -> torch.Tensor:
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return render(*given)

    monkeypatch.setattr(pose_network, "render", stopped)
    with pytest.raises(KeyboardInterrupt):
        render_frames(TINY, 3, 7, tmp_path)
    resumed = render_frames(TINY, 3, 7, tmp_path)
    assert len(calls) == 4 and all(torch.equal(a, b) for a, b in zip(resumed, whole, strict=True))


def test_a_gradient_that_is_not_finite_leaves_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(heat: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        return torch.sqrt((heat * 0).square().sum())

    monkeypatch.setattr(pose_network, "_loss", loss)
    with pytest.raises(FloatingPointError, match=r"the gradient of .* is not finite"):
        pose_reader(TINY, tmp_path)
    assert not reader_path(TINY, tmp_path).exists()


def test_frames_that_fit_no_memory_are_refused_before_rendering(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^clips, frames and size: expected a value that fits into"):
        pose_reader(dataclasses.replace(TINY, clips=10**10), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_it_is_trained_on_nobody_who_is_evaluated() -> None:
    sets = (HELD_OUT, STRANGERS_CLIPS, GALLERY_CLIPS, HELD_OUT_GALLERY, HELD_OUT_STRANGERS, FIRST_FRAMES)
    assert not {7, 8} & {each.seed for each in sets}


def test_the_default_network_is_small() -> None:
    network = PoseNetwork(PoseNetworkConfig().widths)
    assert 2e5 < sum(parameter.numel() for parameter in network.parameters()) < 6e5


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="size: expected a positive multiple of 16, got 40"):
        PoseNetworkConfig(size=40)
    reader = pose_network.PoseReader(PoseNetwork((4, 4, 4)).eval(), TINY, 0.0)
    with pytest.raises(ValueError, match=r"video: expected shape \[B, 3, T, 32, 32\], got \[1, 3, 2, 64, 64\]"):
        reader.see(torch.zeros(1, 3, 2, 64, 64))
    with pytest.raises(ValueError, match="frames: expected a size that is a multiple of 16, got 24"):
        reader.network(torch.zeros(1, 3, 24, 24))
