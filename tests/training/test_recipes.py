# SPDX-License-Identifier: Apache-2.0
"""The recipe of the bundled model from an empty folder to a streaming session, at a size that takes seconds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import aapt_fast
from aapt_fast.models.aapt.convert import bidirectional
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.presets import NANO
from aapt_fast.models.vae.mini import MiniVAE, MiniVAEConfig
from aapt_fast.testing.compare import assert_near
from aapt_fast.training import recipes
from aapt_fast.training.adversarial import AdversarialConfig
from aapt_fast.training.codec import CodecConfig
from aapt_fast.training.consistency import ConsistencyConfig
from aapt_fast.training.data import ClipSetConfig, make_clip, render_clips
from aapt_fast.training.diffusion import DiffusionConfig
from aapt_fast.training.pose_network import PoseNetworkConfig
from aapt_fast.training.pretrain import PretrainConfig
from aapt_fast.training.recipes import COMPANY, COMPANY_CLIPS, PERSON, Recipe
from aapt_fast.worlds.company import Company

CLIPS = {"strangers": 2, "gallery": 4, "held_out_strangers": 4, "held_out_gallery": 4, "first_frames": 2}


def tiny(recipe: Recipe) -> Recipe:
    """Everything of a recipe, smaller."""
    smaller = {
        name: dataclasses.replace(config, clips=clips, frames=min(config.frames, 25), size=32)
        for name, clips in CLIPS.items()
        for config in [getattr(recipe, name)]
    }
    held_out = tuple(dataclasses.replace(config, clips=1, frames=25, size=32) for config in recipe.held_out)
    vae = MiniVAEConfig(encoder_widths=(4, 4, 4), decoder_widths=(4, 4, 4))
    short = {"steps": 3, "batch": 2, "evaluate_every": 2}
    return dataclasses.replace(
        recipe,
        **smaller,
        held_out=held_out,
        start=None,
        pose=PoseNetworkConfig(size=32, widths=(4, 4, 4), clips=2, held_out=1, frames=2, steps=2, batch=2),
        codec=CodecConfig(model=vae, steps=3, batch=1, crop=32, evaluate_every=2, compile=False),
        pretrain=PretrainConfig(bidirectional(NANO), clip_frames=5, **short),
        diffusion=DiffusionConfig(NANO, clip_frames=5, compile=False, **short),
        consistency=ConsistencyConfig(NANO, clip_frames=5, **short),
        adversarial=AdversarialConfig(NANO, segment_frames=3, adversarial=0.1, discriminator_alone=1, **short),
    )


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_from_an_empty_folder_to_a_session(name: str, tmp_path: Path) -> None:
    recipe = tiny(recipes.RECIPES[name])
    recipes.train(recipe, tmp_path, recipes.STAGES)
    for stage in ("codec", *recipes.GENERATOR_STAGES, "reconstruction"):
        assert all((tmp_path / stage / name).stat().st_size > 0 for name in ("log.csv", "samples.png"))
    for config in recipe.held_out:
        report = (tmp_path / "evaluation" / config.name / "report.md").read_text()
        assert "mirrored pose followed" in report and all(f"| {row} |" in report for row, _, _ in recipes.COMPARED)
        assert ("### futures" in report) == (name == "company")
    watched = (tmp_path / "adversarial" / "log.csv").read_text().splitlines()[0].split(",")
    assert {"psnr_12", "sharpness", "strangers_psnr_12", "dynamic_degree", "gap"} <= set(watched)
    file = tmp_path / recipe.name / "model.safetensors"
    model, gallery = aapt_fast.StreamModel.from_pretrained(file), aapt_fast.load_gallery(file)
    assert len(gallery) == 2 and len(gallery[0].pose) == 17
    assert gallery[1].identity == (None if name == "company" else recipe.first_frames.identity_seed(1))
    assert (gallery[1].image == make_clip(recipe.first_frames, 1)[0][0].numpy()).all()
    last = torch.load(tmp_path / "adversarial" / "generator.pt", weights_only=True)
    assert_near(model.generator.unpatch.weight, last["unpatch.weight"].half().float(), 1e-6)
    with aapt_fast.StreamSession(model, gallery[0].image) as session:
        assert session.step(make_clip(recipe.gallery, 0)[1][:4]).shape == (4, 32, 32, 3)


def test_stage_1_starts_from_the_conversion_of_the_pretrained_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, starts = tiny(PERSON), []

    def note_start(folder, config, clips, channel_weights, evaluate, start):
        starts.append(start)
        return start or Generator(config.model)

    monkeypatch.setattr(recipes, "train_diffusion", note_start)
    (tmp_path / "diffusion").mkdir()
    recipes.train(recipe, tmp_path, ("codec", "diffusion"))
    recipes.train(recipe, tmp_path, ("pretrain", "diffusion"))
    assert starts[0] is None and starts[1] is not None
    assert starts[1].config == NANO
    pretrained = torch.load(tmp_path / "pretrain" / "generator.pt", weights_only=True)
    for name in ("blocks.1.video.qkv.weight", "unpatch.weight", "timestep.out.weight"):
        assert torch.equal(starts[1].state_dict()[name], pretrained[name]), name
    columns = pretrained["patch_embed.weight"].shape[1]
    assert torch.equal(starts[1].patch_embed.weight[:, :columns], pretrained["patch_embed.weight"])
    assert "error_0.5" in (tmp_path / "pretrain" / "log.csv").read_text()


def test_a_stage_1_that_has_begun_does_not_change_its_start(tmp_path: Path) -> None:
    recipe = tiny(PERSON)
    recipes.train(recipe, tmp_path, ("codec", "diffusion"))
    recipes.train(recipe, tmp_path, ("pretrain",))
    with pytest.raises(
        ValueError, match=r"out: expected a run of stage 1 that started from stage pretrain .*, got one"
    ):
        recipes.train(recipe, tmp_path, ("diffusion",))
    assert (tmp_path / "diffusion" / "start.txt").read_text() == "random weights"


def test_stages_in_the_wrong_order_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"out: expected a folder with a finished codec"):
        recipes.train(PERSON, tmp_path, ("diffusion",))
    with pytest.raises(ValueError, match=r"out: expected a folder with a finished stage diffusion"):
        recipes.train(PERSON, tmp_path, ("export",))
    with pytest.raises(ValueError, match=r"finished stage diffusion .* run stage diffusion first"):
        recipes.train(PERSON, tmp_path, ("adversarial",))
    with pytest.raises(ValueError, match=r"stage: expected codec \| pretrain \| diffusion \| .*, got sing"):
        recipes.train(PERSON, tmp_path, ("sing",))


@pytest.mark.parametrize("recipe", recipes.RECIPES.values(), ids=recipes.RECIPES)
def test_held_out_motions_are_held_out_and_persons_are_known(recipe: Recipe) -> None:
    trained = {each.motion_seed(clip) for each in (recipe.strangers, recipe.gallery) for clip in range(each.clips)}
    held_out = (recipe.held_out_strangers, recipe.held_out_gallery, recipe.first_frames, *recipe.held_out)
    assert not trained & {each.motion_seed(clip) for each in held_out for clip in range(each.clips)}
    seen = {each.identity_seed(clip) for each in (recipe.strangers, recipe.gallery) for clip in range(each.clips)}
    unseen = [each for each in held_out if each.identities == 0]
    assert unseen and not seen & {each.identity_seed(clip) for each in unseen for clip in range(each.clips)}
    known = {recipe.gallery.identity_seed(clip) for clip in range(recipe.gallery.clips)}
    assert known == set(range(recipe.gallery.identities))
    assert known >= {each.identity_seed(clip) for each in held_out if each.identities for clip in range(each.clips)}
    sets = [*(getattr(recipe, name) for name in CLIPS), *recipe.held_out]
    assert len({each.name for each in sets}) == len(sets) and len({each.company for each in sets}) == 1


def test_a_recipe_may_start_from_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Codec and stage 1 get the weights of a file that another run has exported."""
    recipe, starts = tiny(PERSON), []
    recipes.train(recipe, tmp_path / "first", ("codec", "diffusion", "export"))
    file = tmp_path / "first" / recipe.name / "model.safetensors"

    def note_codec(folder, config, clip_sets, held_out, start):
        starts.append(start)
        return start

    def note_diffusion(folder, config, clips, channel_weights, evaluate, start):
        starts.append(start)
        return start

    monkeypatch.setattr(recipes, "train_codec", note_codec)
    monkeypatch.setattr(recipes, "train_diffusion", note_diffusion)
    (tmp_path / "second" / "codec").mkdir(parents=True)
    onwards = dataclasses.replace(recipe, start=str(file), pretrain=None)
    recipes.train(onwards, tmp_path / "second", ("codec", "pretrain", "diffusion"))
    expected = aapt_fast.StreamModel.from_pretrained(file)
    assert torch.equal(starts[0].linear_encoder.weight, expected.vae.linear_encoder.weight)
    assert torch.equal(starts[1].unpatch.weight, expected.generator.unpatch.weight)
    assert (tmp_path / "second" / "diffusion" / "start.txt").read_text() == str(file)


def test_a_recipe_without_a_codec_takes_over_that_of_its_start(tmp_path: Path) -> None:
    first = tiny(PERSON)
    recipes.train(first, tmp_path / "first", ("codec", "diffusion", "export"))
    file = tmp_path / "first" / first.name / "model.safetensors"
    onwards = dataclasses.replace(first, start=str(file), pretrain=None, codec=None)
    recipes.train(onwards, tmp_path / "second", ("codec", "diffusion", "export"))
    before = aapt_fast.StreamModel.from_pretrained(file)
    after = aapt_fast.StreamModel.from_pretrained(tmp_path / "second" / onwards.name / "model.safetensors")
    assert torch.equal(before.vae.linear_encoder.weight, after.vae.linear_encoder.weight)
    assert not torch.equal(before.generator.unpatch.weight, after.generator.unpatch.weight)
    with pytest.raises(ValueError, match=r"stage: expected one of a recipe that does not start from a model"):
        recipes.train_pretrain_stage(onwards, tmp_path / "second")


def test_recipes_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(ValueError, match=r"start: expected a model, as the recipe trains no codec, got None"):
        dataclasses.replace(PERSON, codec=None)
    with pytest.raises(ValueError, match=r"pretrain: expected None, as stage 1 begins from mini-person"):
        dataclasses.replace(PERSON, start="mini-person")


def test_company_has_more_persons_and_company() -> None:
    assert COMPANY.gallery == COMPANY_CLIPS and COMPANY_CLIPS.company == Company()
    assert COMPANY_CLIPS.identities == 64 and PERSON.gallery.company is None


def test_the_last_finished_stage_counts(tmp_path: Path) -> None:
    assert recipes.last_stage(tmp_path) == "diffusion"
    for stage in ("diffusion", "adversarial"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "generator.pt").touch()
    assert recipes.last_stage(tmp_path) == "adversarial"
    assert recipes.last_stage(tmp_path, before="adversarial") == "diffusion"


def test_latents_are_made_anew_when_codec_or_clips_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    vae = MiniVAE(MiniVAEConfig(encoder_widths=(4, 4, 4), decoder_widths=(4, 4, 4)))
    config = ClipSetConfig("few", clips=2, frames=5, size=32)
    path, encoded = tmp_path / "few.latents.pt", []
    encode = MiniVAE.encode
    monkeypatch.setattr(MiniVAE, "encode", lambda vae, video: encoded.append(len(video)) or encode(vae, video))

    def latents(config: ClipSetConfig) -> torch.Tensor:
        return recipes.encode_clips(vae, render_clips(tmp_path, config), path)

    first = latents(config)
    assert torch.equal(latents(config), first) and encoded == [2]
    other = latents(dataclasses.replace(config, seed=1))  # as many clips, others
    assert not torch.equal(other, first) and encoded == [2, 2]
    with torch.no_grad():
        next(vae.parameters()).view(-1)[0] += 1e-6
    latents(dataclasses.replace(config, seed=1))
    assert encoded == [2, 2, 2]
