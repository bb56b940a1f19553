# SPDX-License-Identifier: Apache-2.0
"""The yardstick itself: a perfect model scores perfectly, a still one does not, the mirror test tells sides apart."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from aapt_fast.models.config import MiniVAEConfig
from aapt_fast.models.generator import Generator
from aapt_fast.models.mini_vae import MiniVAE
from aapt_fast.models.presets import NANO, NANO_TEXT
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.training import evaluate
from aapt_fast.training.evaluate import HELD_OUT, evaluate_person, make_truth, to_markdown
from aapt_fast.training.recipes import FIRST_FRAMES, GALLERY_CLIPS, HELD_OUT_GALLERY, STRANGERS_CLIPS

TINY = dataclasses.replace(HELD_OUT, clips=2, frames=25, size=32)
TINY_VAE = MiniVAEConfig(encoder_widths=(4, 4, 4), decoder_widths=(4, 4, 4))


def test_held_out_motions_are_not_in_the_training_data() -> None:
    trained = {s.motion_seed(i) for s in (GALLERY_CLIPS, STRANGERS_CLIPS) for i in range(s.clips)}
    held_out = {s.motion_seed(i) for s in (HELD_OUT, HELD_OUT_GALLERY, FIRST_FRAMES) for i in range(s.clips)}
    assert not trained & held_out
    assert {HELD_OUT.identity_seed(i) for i in range(HELD_OUT.clips)} == set(range(16))


def test_the_mirrored_truth_starts_at_the_same_picture_and_then_differs() -> None:
    truth = make_truth(TINY, 0)
    assert torch.equal(truth.video[:, 0], truth.mirrored_video[:, 0])
    assert (truth.video[:, 12:] - truth.mirrored_video[:, 12:]).abs().amax((0, 2, 3)).min() > 0.1


def test_the_mirror_test_tells_the_sides_apart() -> None:
    truths = [make_truth(TINY, clip) for clip in range(2)]
    video = torch.stack([each.video for each in truths])
    mirrored = torch.stack([each.mirrored_video for each in truths])
    noisy = mirrored + 0.1 * torch.randn_like(mirrored)
    assert evaluate._right_side(noisy, mirrored, video).tolist() == [True, True]
    assert evaluate._right_side(video, mirrored, video).tolist() == [False, False]


def test_a_perfect_model_reaches_the_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    truths = [make_truth(TINY, clip) for clip in range(2)]
    answers = iter([torch.stack([t.video for t in truths]), torch.stack([t.mirrored_video for t in truths])])
    monkeypatch.setattr(evaluate, "_generate", lambda *arguments: next(answers))
    report = evaluate_person(StreamModel(Generator(NANO), MiniVAE(TINY_VAE).eval()), None, TINY)
    rows = {row["what"]: row for row in report["drift"]}
    assert rows["model psnr"]["frame 12"] == 100 and rows["model ssim"]["mean"] == pytest.approx(1)
    assert rows["still psnr"]["frame 12"] < 40
    assert report["mirror"] == [{"what": "mirrored pose followed", "clips": 2, "share": 1.0}]


def test_a_real_model_writes_its_report(tmp_path: Path) -> None:
    report = evaluate_person(StreamModel(Generator(NANO).eval(), MiniVAE(TINY_VAE).eval()), tmp_path, TINY)
    assert {path.name for path in tmp_path.iterdir()} == {"drift.png", "drift.csv", "report.md"}
    assert len((tmp_path / "drift.csv").read_text().splitlines()) == 1 + TINY.frames
    assert (tmp_path / "report.md").read_text() == to_markdown(report)
    assert [row["what"] for row in report["drift"]][:3] == ["model psnr", "model ssim", "model sharpness"]


def test_a_model_without_poses_is_refused() -> None:
    model = StreamModel(Generator(NANO_TEXT), MiniVAE(TINY_VAE))
    with pytest.raises(ValueError, match="model: expected a model with pose control, got None"):
        evaluate_person(model, None, TINY)
