# SPDX-License-Identifier: Apache-2.0
"""The recipe of the bundled model from an empty folder to a streaming session, at a size that takes seconds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import aapt_fast
from aapt_fast.models.config import MiniVAEConfig
from aapt_fast.models.convert import bidirectional
from aapt_fast.models.generator import Generator
from aapt_fast.models.presets import NANO
from aapt_fast.testing.compare import assert_near
from aapt_fast.training import recipes
from aapt_fast.training.adversarial import AdversarialConfig
from aapt_fast.training.codec import CodecConfig
from aapt_fast.training.consistency import ConsistencyConfig
from aapt_fast.training.data import ClipSetConfig, make_clip
from aapt_fast.training.diffusion import DiffusionConfig
from aapt_fast.training.pose_network import PoseNetworkConfig
from aapt_fast.training.pretrain import PretrainConfig

CLIPS = {"STRANGERS_CLIPS": 2, "GALLERY_CLIPS": 4, "HELD_OUT_STRANGERS": 1, "HELD_OUT_GALLERY": 4, "FIRST_FRAMES": 2}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every constant of the recipe, smaller."""
    for name, clips in {**CLIPS, "HELD_OUT": 1}.items():
        config: ClipSetConfig = getattr(recipes, name)
        frames = min(config.frames, 25)
        monkeypatch.setattr(recipes, name, dataclasses.replace(config, clips=clips, frames=frames, size=32))
    vae = MiniVAEConfig(encoder_widths=(4, 4, 4), decoder_widths=(4, 4, 4))
    codec = CodecConfig(model=vae, steps=3, batch=1, crop=32, evaluate_every=2, compile=False)
    monkeypatch.setattr(recipes, "CODEC", codec)
    short = {"steps": 3, "batch": 2, "evaluate_every": 2}
    monkeypatch.setattr(recipes, "PRETRAIN", PretrainConfig(bidirectional(NANO), clip_frames=5, **short))
    monkeypatch.setattr(recipes, "DIFFUSION", DiffusionConfig(NANO, clip_frames=5, **short))
    monkeypatch.setattr(recipes, "CONSISTENCY", ConsistencyConfig(NANO, clip_frames=5, **short))
    adversarial = AdversarialConfig(
        NANO, segment_frames=3, identities=2, adversarial=0.1, discriminator_alone=1, **short
    )
    monkeypatch.setattr(recipes, "ADVERSARIAL", adversarial)
    pose = PoseNetworkConfig(size=32, widths=(4, 4, 4), clips=2, held_out=1, frames=2, steps=2, batch=2)
    monkeypatch.setattr(recipes, "POSE_NETWORK", pose)


def test_from_an_empty_folder_to_a_session(tiny: None, tmp_path: Path) -> None:
    recipes.train_person(tmp_path, recipes.STAGES)
    for stage in ("codec", *recipes.GENERATOR_STAGES):
        assert all((tmp_path / stage / name).stat().st_size > 0 for name in ("log.csv", "samples.png"))
    assert "mirrored pose followed" in (tmp_path / "evaluation" / "report.md").read_text()
    file = tmp_path / "mini-person" / "model.safetensors"
    model, gallery = aapt_fast.load_model(file), aapt_fast.load_gallery(file)
    assert len(gallery) == 2 and len(gallery[0].pose) == 17
    last = torch.load(tmp_path / "adversarial" / "generator.pt", weights_only=True)
    assert_near(model.generator.unpatch.weight, last["unpatch.weight"].half().float(), 1e-6)
    with aapt_fast.StreamSession(model, gallery[0].image) as session:
        assert session.step(make_clip(recipes.GALLERY_CLIPS, 0)[1][:4]).shape == (4, 32, 32, 3)


def test_stage_1_starts_from_the_conversion_of_the_pretrained_model(
    tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[Generator | None] = []

    def note_start(folder, config, clips, channel_weights, evaluate, start):
        starts.append(start)
        return start or Generator(config.model)

    monkeypatch.setattr(recipes, "train_diffusion", note_start)
    (tmp_path / "diffusion").mkdir()
    recipes.train_person(tmp_path, ("codec", "diffusion"))
    recipes.train_person(tmp_path, ("pretrain", "diffusion"))
    assert starts[0] is None and starts[1] is not None
    assert starts[1].config == NANO
    pretrained = torch.load(tmp_path / "pretrain" / "generator.pt", weights_only=True)
    for name in ("blocks.1.video.qkv.weight", "unpatch.weight", "timestep.out.weight"):
        assert torch.equal(starts[1].state_dict()[name], pretrained[name]), name
    columns = pretrained["patch_embed.weight"].shape[1]
    assert torch.equal(starts[1].patch_embed.weight[:, :columns], pretrained["patch_embed.weight"])
    assert "error_0.5" in (tmp_path / "pretrain" / "log.csv").read_text()


def test_stages_in_the_wrong_order_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"out: expected a folder with a finished codec"):
        recipes.train_person(tmp_path, ("diffusion",))
    with pytest.raises(ValueError, match=r"out: expected a folder with a finished stage 1"):
        recipes.train_person(tmp_path, ("export",))
    with pytest.raises(ValueError, match=r"finished stage 1 .* run stage diffusion first"):
        recipes.train_person(tmp_path, ("adversarial",))
    with pytest.raises(ValueError, match=r"stage: expected codec \| pretrain \| diffusion \| .*, got sing"):
        recipes.train_person(tmp_path, ("sing",))


def test_the_last_finished_stage_counts(tmp_path: Path) -> None:
    assert recipes.last_stage(tmp_path) == "diffusion"
    for stage in ("diffusion", "adversarial"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "generator.pt").touch()
    assert recipes.last_stage(tmp_path) == "adversarial"
    assert recipes.last_stage(tmp_path, before="adversarial") == "diffusion"
