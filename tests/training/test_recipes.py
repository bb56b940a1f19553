# SPDX-License-Identifier: Apache-2.0
"""The recipe of the bundled model from an empty folder to a streaming session, at a size that takes seconds."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import aapt_fast
from aapt_fast.models.aapt.convert import bidirectional
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.presets import NANO
from aapt_fast.models.vae.mini import MiniVAE, MiniVAEConfig
from aapt_fast.testing.compare import assert_near
from aapt_fast.testing.fake_cuda import FAKE_GPU, fake_cuda
from aapt_fast.training import (
    adversarial,
    codec,
    consistency,
    data,
    diffusion,
    evaluate,
    pretrain,
    recipes,
    report,
    several_futures,
    stages,
)
from aapt_fast.training.adversarial import AdversarialConfig
from aapt_fast.training.camera_network import CameraNetworkConfig
from aapt_fast.training.codec import CodecConfig
from aapt_fast.training.consistency import ConsistencyConfig
from aapt_fast.training.data import ClipSetConfig, make_clip, render_clips
from aapt_fast.training.diffusion import DiffusionConfig
from aapt_fast.training.place import Place
from aapt_fast.training.plan import result_path
from aapt_fast.training.pose_network import PoseNetworkConfig
from aapt_fast.training.pretrain import PretrainConfig
from aapt_fast.training.recipes import ANYONE, PERSON, Recipe
from aapt_fast.training.run import CHECKPOINT, UNWATCHED
from aapt_fast.training.step_latency import step_latency
from aapt_fast.training.trial import STEPS, trial_of
from aapt_fast.worlds.person.world import PersonWorld

CLIPS = {"strangers": 2, "gallery": 4, "held_out_strangers": 2, "held_out_gallery": 2, "first_frames": 2}


@contextmanager
def small_and_quick() -> Iterator[None]:
    """Renders in threads, with a tiny pose network, few evaluations, timed steps and futures, and no plots."""
    pose = functools.partial(PoseNetworkConfig, widths=(4, 4, 4), clips=2, held_out=1, frames=2, steps=2, batch=2)
    camera = functools.partial(CameraNetworkConfig, widths=(4,) * 3, clips=2, held_out=1, pairs=2, steps=2, batch=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "PoseNetworkConfig", pose)
        patch.setattr(recipes, "CameraNetworkConfig", camera)
        patch.setattr(data, "ProcessPoolExecutor", lambda workers, *_, **__: ThreadPoolExecutor(workers))
        for name, number in {"FUTURES": 2, "SAMPLES": 2, "FRAMES": 8}.items():
            patch.setattr(several_futures, name, number)
        patch.setattr(stages, "COMPARED", tuple((name, stage, min(nfe, 2)) for name, stage, nfe in stages.COMPARED))
        patch.setattr(report, "can_plot", lambda: False)
        patch.setattr(evaluate, "step_latency", functools.partial(step_latency, steps=2, warm=1))
        yield


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with small_and_quick():
        yield


def tiny(recipe: Recipe) -> Recipe:
    """Everything of a recipe, smaller; with four levels of the codec where the recipe has them."""
    levels = len(recipe.codec.model.decoder_widths) if recipe.codec else 3
    size = 4 * 2**levels
    smaller = {
        name: dataclasses.replace(config, clips=clips, frames=min(config.frames, 17), size=size)
        for name, clips in CLIPS.items()
        for config in [getattr(recipe, name)]
    }
    held_out = tuple(dataclasses.replace(config, clips=1, frames=17, size=size) for config in recipe.held_out)
    shorter = functools.partial(dataclasses.replace, frames=9, size=size)
    also_coded = tuple((shorter(each, clips=2), shorter(other, clips=1)) for each, other in recipe.also_coded)
    vae = MiniVAEConfig(16, *[(each,) * levels for each in (4, 1, 4, 1)])
    model = dataclasses.replace(NANO, control=recipe.diffusion.model.control)
    short = {"steps": 3, "batch": 2, "evaluate_every": 3}
    return dataclasses.replace(
        recipe,
        **smaller,
        held_out=held_out,
        also_coded=also_coded,
        start=None,
        codec=CodecConfig(model=vae, steps=3, batch=1, crop=32, evaluate_every=3, compile=False),
        pretrain=PretrainConfig(bidirectional(model), clip_frames=5, **short) if recipe.pretrain else None,
        diffusion=DiffusionConfig(model, clip_frames=4, compile=False, **short),
        consistency=ConsistencyConfig(model, clip_frames=4, **short),
        adversarial=AdversarialConfig(
            model, segment_frames=2, segments=2, adversarial=0.1, discriminator_alone=1, **short
        ),
    )


TAKEN = {"person": stages.STAGES, "rooms": stages.MAIN_STAGES}
"""Stages of the two runs below; the baseline `reconstruction` knows nothing of the world."""


def finish(name: str, folder: Path) -> Path:
    """Run the stages of a recipe, made tiny, in `folder`."""
    with small_and_quick():
        stages.train(tiny(recipes.RECIPES[name]), folder, TAKEN[name])
    return folder


@pytest.fixture(scope="module")
def person_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish("person", tmp_path_factory.mktemp("person"))


@pytest.fixture(scope="module")
def rooms_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish("rooms", tmp_path_factory.mktemp("rooms"))


@pytest.fixture
def person(person_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished person recipe, for a test to change."""
    return Path(shutil.copytree(person_run, tmp_path / "person"))


@pytest.mark.parametrize("name", ["person", "rooms"])
def test_from_an_empty_folder_to_a_session(name: str, request: pytest.FixtureRequest) -> None:
    recipe, folder = tiny(recipes.RECIPES[name]), request.getfixturevalue(f"{name}_run")
    trained = [stage for stage in TAKEN[name] if stage in ("codec", "reconstruction", *stages.GENERATOR_STAGES)]
    rows = [row for row, stage, _ in stages.COMPARED if stage in trained]
    for stage in trained:
        assert all((folder / stage / name).stat().st_size > 0 for name in ("log.csv", "samples.png"))
    for config in recipe.held_out:
        written = (folder / "evaluation" / config.name / "report.md").read_text()
        assert "mirrored control followed" in written and all(f"| {row} |" in written for row in rows)
        assert ("### futures" in written) == config.world.has_chance
    watched = (folder / "adversarial" / "log.csv").read_text().splitlines()[0].split(",")
    assert {"psnr_12", "sharpness", "strangers_psnr_12", "dynamic_degree", "gap"} <= set(watched)
    file = folder / recipe.name / "model.safetensors"
    model, gallery = aapt_fast.StreamModel.from_pretrained(file), aapt_fast.load_gallery(file)
    assert len(gallery) == 2 and len(gallery[0].pose) == (17 if name == "person" else 6) and model.world.name == name
    assert gallery[1].scene == recipe.first_frames.scene(1)
    assert (gallery[1].image == make_clip(recipe.first_frames, 1).video[0].numpy()).all()
    last = torch.load(folder / "adversarial" / "generator.pt", weights_only=True)
    assert_near(model.generator.unpatch.weight, last["unpatch.weight"].half().float(), 1e-6)
    with aapt_fast.StreamSession(model, gallery[0].image) as session:
        assert session.step(make_clip(recipe.gallery, 0).controls[:4]).shape == (4, *model.video_size, 3)


def test_a_trial_is_evaluated_without_a_pose_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aapt_fast.training.trial.CLIPS", 2)
    monkeypatch.setattr("aapt_fast.training.trial.STEPS", dict.fromkeys(STEPS, 2))
    trial = trial_of(tiny(PERSON))
    stages.train(trial, tmp_path, ("codec", "diffusion", "evaluate"))
    assert not (tmp_path / "pose_network").exists()
    assert "diffusion" in (tmp_path / "evaluation" / trial.held_out[0].name / "report.md").read_text()


def test_stage_1_starts_from_the_conversion_of_the_pretrained_model(
    person: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = []

    def note_start(folder, config, clips, channel_weights, evaluate, start, watch, place):
        starts.append(start)
        return start or Generator(config.model)

    monkeypatch.setattr(stages, "train_diffusion", note_start)
    pretrained = torch.load(person / "pretrain" / "generator.pt", weights_only=True)
    assert "error_0.5" in (person / "pretrain" / "log.csv").read_text()
    (person / "diffusion" / "checkpoint.pt").unlink()
    stages.train(tiny(PERSON), person, ("diffusion",))
    (person / "pretrain" / "generator.pt").unlink()
    stages.train(tiny(PERSON), person, ("diffusion",))
    assert starts[0] is not None and starts[1] is None
    assert starts[0].config == NANO
    for name in ("blocks.1.video.qkv.weight", "unpatch.weight", "timestep.out.weight"):
        assert torch.equal(starts[0].state_dict()[name], pretrained[name]), name
    columns = pretrained["patch_embed.weight"].shape[1]
    assert torch.equal(starts[0].patch_embed.weight[:, :columns], pretrained["patch_embed.weight"])


def test_a_stage_1_that_has_begun_does_not_change_its_start(person: Path) -> None:
    (person / "pretrain" / "generator.pt").unlink()
    with pytest.raises(
        ValueError, match=r"out: expected a run of stage 1 that started from random weights .*, got one from stage pre"
    ):
        stages.train(tiny(PERSON), person, ("diffusion",))
    assert (person / "diffusion" / "start.txt").read_text() == "stage pretrain"


def test_stages_in_the_wrong_order_say_what_is_missing_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"out: expected a folder with a finished stage codec"):
        stages.train(PERSON, tmp_path, ("diffusion",))
    with pytest.raises(ValueError, match=r"out: expected a folder with a finished stage diffusion"):
        stages.train(PERSON, tmp_path, ("export",))
    with pytest.raises(ValueError, match=r"finished stage diffusion .* run stage diffusion first"):
        stages.train(PERSON, tmp_path, ("adversarial",))
    with pytest.raises(ValueError, match=r"stage: expected codec \| pretrain \| diffusion \| .*, got sing"):
        stages.train(PERSON, tmp_path, ("sing",))
    assert list(tmp_path.iterdir()) == []


def test_data_and_evaluations_of_stages_are_on_the_gpu_of_the_place(person: Path, tmp_path: Path, monkeypatch) -> None:
    shutil.copytree(person, tmp_path / "run")
    asked = []

    def look(folder, config, clips, channel_weights, evaluate, *others):
        assert channel_weights.device == others[-1].device == FAKE_GPU
        model = Generator(config.model).to(FAKE_GPU)
        asked.extend(evaluate(model))
        return model

    monkeypatch.setattr(stages, "train_diffusion", look)
    monkeypatch.setattr(stages, "train_bidirectional", look)
    monkeypatch.setattr(stages.RecipeRun, "_load", lambda run, model, stage: model)
    with fake_cuda():
        run = stages.RecipeRun(tiny(PERSON), tmp_path / "run", Place(FAKE_GPU))
        for stage in ("diffusion", "pretrain"):
            run.take(stage, UNWATCHED)
    assert {"psnr_4", "strangers_psnr_4", "error_0.5"} <= set(asked)


def test_a_recipe_may_start_from_a_model(person: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Codec and stage 1 get the weights of a file that another run has exported."""
    starts = []
    file = person / PERSON.name / "model.safetensors"

    def note_codec(folder, config, clip_sets, held_out, start, watch, place):
        starts.append(start)
        return start

    def note_diffusion(folder, config, clips, channel_weights, evaluate, start, watch, place):
        starts.append(start)
        return start

    monkeypatch.setattr(stages, "train_codec", note_codec)
    monkeypatch.setattr(stages, "train_diffusion", note_diffusion)
    onwards = dataclasses.replace(tiny(PERSON), start=str(file), pretrain=None)
    stages.train(onwards, tmp_path / "second", ("codec", "pretrain", "diffusion"))
    expected = aapt_fast.StreamModel.from_pretrained(file)
    assert torch.equal(starts[0].linear_encoder.weight, expected.vae.linear_encoder.weight)
    assert torch.equal(starts[1].unpatch.weight, expected.generator.unpatch.weight)
    assert (tmp_path / "second" / "diffusion" / "start.txt").read_text() == str(file)


def test_a_recipe_without_a_codec_takes_over_that_of_its_start(person: Path, tmp_path: Path) -> None:
    """So do persons whom the recipe `anyone` shows first."""
    file = person / PERSON.name / "model.safetensors"
    onwards = dataclasses.replace(tiny(ANYONE), start=str(file), pretrain=None, codec=None)
    stages.train(onwards, tmp_path / "second", ("codec", "diffusion", "export"))
    exported = tmp_path / "second" / ANYONE.name / "model.safetensors"
    before, after = aapt_fast.StreamModel.from_pretrained(file), aapt_fast.StreamModel.from_pretrained(exported)
    assert torch.equal(before.vae.linear_encoder.weight, after.vae.linear_encoder.weight)
    assert not torch.equal(before.generator.unpatch.weight, after.generator.unpatch.weight)
    assert [each.scene for each in aapt_fast.load_gallery(exported)] == [12_000_000, 12_000_001]


def test_recipes_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(ValueError, match=r"start: expected a model, as the recipe trains no codec, got None"):
        dataclasses.replace(PERSON, codec=None)
    with pytest.raises(ValueError, match=r"pretrain: expected None, as stage 1 begins from mini-person"):
        dataclasses.replace(PERSON, start="mini-person")


def test_the_last_finished_stage_counts(tmp_path: Path) -> None:
    assert stages.last_stage(tmp_path) == "diffusion"
    for stage in ("diffusion", "adversarial"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "generator.pt").touch()
    assert stages.last_stage(tmp_path) == "adversarial"
    assert stages.last_stage(tmp_path, before="adversarial") == "diffusion"


def test_latents_are_made_anew_when_codec_or_clips_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    vae = MiniVAE(MiniVAEConfig(encoder_widths=(4, 4, 4), decoder_widths=(4, 4, 4)))
    config = ClipSetConfig("few", PersonWorld(), clips=2, frames=5, size=32)
    encoded = []
    encode = MiniVAE.encode
    monkeypatch.setattr(MiniVAE, "encode", lambda vae, video: encoded.append(len(video)) or encode(vae, video))

    def latents(config: ClipSetConfig) -> torch.Tensor:
        return stages.encode_clips(vae, render_clips(tmp_path, config), tmp_path)

    first = latents(config)
    assert torch.equal(latents(config), first) and encoded == [2]
    other = latents(dataclasses.replace(config, seed=1))  # as many clips, others
    assert not torch.equal(other, first) and encoded == [2, 2]
    with torch.no_grad():
        next(vae.parameters()).view(-1)[0] += 1e-6
    latents(dataclasses.replace(config, seed=1))
    assert encoded == [2, 2, 2]


def test_a_stopped_encoding_resumes_with_the_missing_clips_and_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = MiniVAE(MiniVAEConfig(encoder_widths=(4, 4, 4), decoder_widths=(4, 4, 4)))
    clip_set = render_clips(tmp_path, ClipSetConfig("few", PersonWorld(), clips=10, frames=5, size=32))
    whole = stages.encode_clips(vae, clip_set, tmp_path / "at once")
    encode, batches = MiniVAE.encode, []

    def stopped(vae: MiniVAE, video: torch.Tensor) -> torch.Tensor:
        batches.append(len(video))
        if len(batches) == 2:
            raise KeyboardInterrupt
        return encode(vae, video)

    monkeypatch.setattr(MiniVAE, "encode", stopped)
    with pytest.raises(KeyboardInterrupt):
        stages.encode_clips(vae, clip_set, tmp_path)
    assert torch.equal(stages.encode_clips(vae, clip_set, tmp_path), whole)
    assert batches == [8, 2, 2]  # the first eight were kept


@pytest.fixture(scope="module")
def bad_gradient() -> Callable[..., torch.Tensor]:
    """The identity [...], whose gradient is nan."""

    class Identity(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * torch.nan

    return Identity.apply


LOOPS = {
    "codec": (codec, "codec_loss"),
    "pretrain": (pretrain, "flow_matching_loss"),
    "diffusion": (diffusion, "flow_matching_loss"),
    "consistency": (consistency, "frame_distance"),
    "reconstruction": (adversarial, "roll_out"),
    "adversarial": (adversarial, "discriminator_loss"),
}


@pytest.mark.parametrize("stage", LOOPS)
def test_every_training_stops_before_a_bad_gradient_moves_anything(
    stage: str, person: Path, monkeypatch: pytest.MonkeyPatch, bad_gradient: Callable[..., torch.Tensor]
) -> None:
    """All losses are finite; only a gradient is not."""
    module, name = LOOPS[stage]
    (person / stage / CHECKPOINT).unlink()
    (person / stage / result_path(person, stage).name).unlink()
    whole = getattr(module, name)

    def poisoned(*given: object) -> object:
        result = whole(*given)
        if name == "roll_out":
            return (dataclasses.replace(each, fake=bad_gradient(each.fake)) for each in result)
        return bad_gradient(result)

    monkeypatch.setattr(module, name, poisoned)
    with pytest.raises(
        FloatingPointError, match=rf"the gradient of \S+ is not finite at step 0 .*{stage} has no check"
    ):
        stages.train(tiny(PERSON), person, (stage,))
    assert not result_path(person, stage).exists() and not (person / stage / CHECKPOINT).exists()


def test_a_folder_in_which_another_process_trains_is_refused(tmp_path: Path) -> None:
    with (
        stages._alone_in(tmp_path),
        pytest.raises(ValueError, match="out: expected a folder in which no other process is training, got"),
    ):
        stages.train(tiny(PERSON), tmp_path, ("codec",))


def contents(folder: Path) -> dict[Path, bytes]:
    """The bytes of all files in a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def onwards(person: Path, tmp_path: Path) -> Recipe:
    """A recipe that takes its codec from another one than that of `person`."""
    start = aapt_fast.StreamModel.from_pretrained(person / PERSON.name / "model.safetensors")
    with torch.no_grad():
        start.vae.linear_encoder.weight.add_(0.5)
    start.save_pretrained(tmp_path / "start.safetensors")
    return dataclasses.replace(tiny(ANYONE), start=str(tmp_path / "start.safetensors"), pretrain=None, codec=None)


def test_a_folder_of_another_recipe_is_refused_and_keeps_every_byte(person: Path, onwards: Recipe) -> None:
    before = contents(person)
    asked, there = rf"recipe mini-anyone from {onwards.start}", r"recipe mini-person from nothing"
    with pytest.raises(
        ValueError, match=rf"^out: expected a new folder or one of {asked}, got .*, which holds {there}"
    ):
        stages.train(onwards, person)
    assert contents(person) == before
    with pytest.raises(ValueError, match=r"one of recipe mini-person from nothing, got .* recipe mini-rooms from no"):
        (person / "recipe.json").write_text('{"name": "mini-rooms", "start": null}')
        stages.train(tiny(PERSON), person)


def test_a_folder_of_an_older_version_is_taken_by_its_own_recipe_only(person: Path, onwards: Recipe) -> None:
    note = person / "recipe.json"
    note.unlink()
    before = contents(person)
    shorter = dataclasses.replace(tiny(PERSON), codec=dataclasses.replace(tiny(PERSON).codec, steps=2))
    with pytest.raises(ValueError, match=r"steps: expected the values in .*codec/config.json, got others"):
        stages.train(shorter, person)
    with pytest.raises(ValueError, match=r"where \S+vae\.pt is the codec of another recipe"):
        stages.train(onwards, person)
    assert contents(person) == before
    stages.train(tiny(PERSON), person, ("export",))
    assert note.exists()


def test_a_codec_that_was_taken_over_is_not_trained_over(person: Path, onwards: Recipe, tmp_path: Path) -> None:
    folder = tmp_path / "onwards"
    stages.train(onwards, folder, ("codec",))
    (folder / "recipe.json").unlink()
    with pytest.raises(ValueError, match=r"where \S+vae\.pt is the codec of another recipe"):
        stages.train(tiny(PERSON), folder, ("codec",))
    stages.train(onwards, folder, ("codec",))
