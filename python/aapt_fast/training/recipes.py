# SPDX-License-Identifier: Apache-2.0
"""Recipes: which data, which stages and which settings make a model.

make train-person        # from nothing to the evaluated one-step weights; resumable at any kill
aapt-fast train anyone --out runs/anyone    # persons whom it has never seen, from the bundled mini-person
aapt-fast train company --out runs/company  # persons in company, from the bundled mini-person

The stages of AAPT start from what is there: stage 1 from the recipe's `start`, else from the stage pretrain (a
bidirectional model, converted), else from random weights, consistency from stage 1, adversarial from consistency if
that has finished, else from stage 1. `reconstruction` is no stage of AAPT but its baseline: adversarial training
without an adversary. What is exported is the last stage of AAPT that has finished; the evaluation compares all that
have.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from aapt_fast.errors import require, require_type
from aapt_fast.models.aapt.convert import bidirectional, to_autoregressive
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.presets import MINI_PERSON
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.mini import MiniVAE
from aapt_fast.training.adversarial import AdversarialConfig, train_adversarial
from aapt_fast.training.clips import LatentClips
from aapt_fast.training.codec import CodecConfig, train_codec
from aapt_fast.training.consistency import ConsistencyConfig, train_consistency
from aapt_fast.training.data import ClipSet, ClipSetConfig, film, make_clip, render_clips, to_float
from aapt_fast.training.diffusion import DiffusionConfig, decoder_sensitivity, train_diffusion
from aapt_fast.training.evaluate import COMPANY_GALLERY, GALLERY, HELD_OUT_SETS, Row, evaluate_person
from aapt_fast.training.held_out import Evaluations, HeldOutRollout
from aapt_fast.training.pose_network import PoseNetworkConfig, pose_reader
from aapt_fast.training.pretrain import HeldOutError, PretrainConfig, train_bidirectional
from aapt_fast.worlds.company import Company

STAGES = ("codec", "pretrain", "diffusion", "consistency", "reconstruction", "adversarial", "export", "evaluate")
MAIN_STAGES = tuple(stage for stage in STAGES if stage != "reconstruction")
GENERATOR_STAGES = ("diffusion", "consistency", "adversarial")
COMPARED = (
    ("diffusion, 8 evaluations", "diffusion", 8),
    ("diffusion, 4 evaluations", "diffusion", 4),
    ("diffusion, 1 evaluation", "diffusion", 1),
    ("consistency", "consistency", 1),
    ("reconstruction only", "reconstruction", 1),
    ("adversarial", "adversarial", 1),
)
"""Rows of the evaluation: name, stage, evaluations per step."""


@dataclass(frozen=True)
class Recipe:
    """What makes one model: its clips and the settings of its stages. `name` is that of the exported model."""

    name: str
    strangers: ClipSetConfig  # everyone has a room of his own
    gallery: ClipSetConfig  # the persons and rooms that the generator is to know best
    held_out_strangers: ClipSetConfig  # for the evaluations during training: nobody has seen these
    held_out_gallery: ClipSetConfig
    first_frames: ClipSetConfig  # the gallery that comes with the model
    held_out: tuple[ClipSetConfig, ...]  # for the final evaluations; the first is the gallery's
    pose: PoseNetworkConfig  # what reads joints off the final evaluation's videos; nothing is trained with it
    codec: CodecConfig | None  # None: the codec of `start` as it is
    pretrain: PretrainConfig | None  # None: stage 1 begins from `start`
    diffusion: DiffusionConfig
    consistency: ConsistencyConfig
    adversarial: AdversarialConfig
    start: str | None = None  # a bundled model or a file, whose weights the codec and stage 1 start from

    def __post_init__(self) -> None:
        nothing = self.start is None
        require(not (nothing and self.codec is None), "start", "a model, as the recipe trains no codec", None)
        require(nothing or self.pretrain is None, "pretrain", f"None, as stage 1 begins from {self.start}", "settings")


STRANGERS_CLIPS = ClipSetConfig("open", clips=640, seed=1, fade_in=0.3)
GALLERY_CLIPS = ClipSetConfig("gallery", clips=960, identities=GALLERY, seed=2, fade_in=0.3)
HELD_OUT_STRANGERS = ClipSetConfig("held-out-strangers", clips=8, seed=3)
HELD_OUT_GALLERY = ClipSetConfig("held-out-gallery", clips=8, identities=GALLERY, seed=5)
FIRST_FRAMES = ClipSetConfig("first-frames", clips=GALLERY, frames=5, identities=GALLERY, seed=6)

PERSON = Recipe(
    name="mini-person",
    strangers=STRANGERS_CLIPS,
    gallery=GALLERY_CLIPS,
    held_out_strangers=HELD_OUT_STRANGERS,
    held_out_gallery=HELD_OUT_GALLERY,
    first_frames=FIRST_FRAMES,
    held_out=(HELD_OUT_SETS["gallery"], HELD_OUT_SETS["strangers"]),
    pose=PoseNetworkConfig(),
    codec=CodecConfig(),
    pretrain=PretrainConfig(model=bidirectional(MINI_PERSON), steps=500),
    diffusion=DiffusionConfig(model=MINI_PERSON, steps=5000, recycled_noise=0.15),
    consistency=ConsistencyConfig(model=MINI_PERSON, steps=200, recycled_noise=0.15),
    adversarial=AdversarialConfig(
        model=MINI_PERSON,
        steps=260,
        segments=2,
        adversarial=0.1,
        penalty=300.0,
        discriminator_alone=60,
        discriminator_rate=7e-4,
        matrix_rate=0.003,
        rate=2e-4,
        average_decay=0.99,
        evaluate_every=50,
    ),
)

# The gallery's model goes on with strangers; its first frames show people whom no recipe trains on.
ANYONE = dataclasses.replace(
    PERSON,
    name="mini-anyone",
    first_frames=ClipSetConfig("first-frames-strangers", clips=8, frames=5, seed=11),
    start="mini-person",
    codec=None,
    pretrain=None,
    diffusion=dataclasses.replace(PERSON.diffusion, steps=2400, matrix_rate=0.01, rate=7e-4),
)

COMPANY_CLIPS = ClipSetConfig("company", clips=640, identities=COMPANY_GALLERY, seed=2, company=Company(), fade_in=0.3)


def _in_company(config: ClipSetConfig) -> ClipSetConfig:
    """A set of the person recipe with more persons and with company."""
    identities = COMPANY_GALLERY if config.identities else 0
    return dataclasses.replace(config, name=f"company-{config.name}", identities=identities, company=Company())


COMPANY = dataclasses.replace(
    PERSON,
    name="mini-company",
    strangers=dataclasses.replace(_in_company(STRANGERS_CLIPS), clips=64),
    gallery=COMPANY_CLIPS,
    held_out_strangers=_in_company(HELD_OUT_STRANGERS),
    held_out_gallery=_in_company(HELD_OUT_GALLERY),
    first_frames=_in_company(FIRST_FRAMES),
    held_out=(HELD_OUT_SETS["company"],),
    start="mini-person",
    pretrain=None,
    codec=CodecConfig(steps=1200, learning_rate=1e-3, gan_from=0.6),
    diffusion=DiffusionConfig(model=MINI_PERSON, steps=2000, recycled_noise=0.15, matrix_rate=0.01, rate=7e-4),
    consistency=ConsistencyConfig(model=MINI_PERSON, steps=240, recycled_noise=0.15),
    # the truth is one of many here, so the adversarial loss leads and the reconstruction only keeps hold
    adversarial=dataclasses.replace(
        PERSON.adversarial,
        steps=160,
        discriminator_alone=40,
        discriminator_rate=1e-3,
        adversarial=2.0,
        balanced=True,
        penalty=100.0,
    ),
)

RECIPES = {"person": PERSON, "anyone": ANYONE, "company": COMPANY}


def train(recipe: Recipe, out: Path, stages: tuple[str, ...] = MAIN_STAGES) -> None:
    """Run the stages in order; each starts from what the one before left in `out`, and goes on where it was killed.

    Raises ValueError for an unknown stage or one whose predecessor has not finished.
    """
    for stage in stages:
        require(stage in STAGES, "stage", " | ".join(STAGES), stage)
    if "codec" in stages:
        train_codec_stage(recipe, out)
    if "pretrain" in stages and recipe.pretrain is not None:
        train_pretrain_stage(recipe, out)
    if "diffusion" in stages:
        train_diffusion_stage(recipe, out)
    if "consistency" in stages:
        train_consistency_stage(recipe, out)
    for stage in ("reconstruction", "adversarial"):
        if stage in stages:
            train_adversarial_stage(recipe, out, stage)
    if "export" in stages:
        export(recipe, out)
    if "evaluate" in stages:
        evaluate(recipe, out)


def train_codec_stage(recipe: Recipe, out: Path) -> MiniVAE:
    """Stage 0: the VAE, on people of the gallery and on strangers; or that of the recipe's `start`, as it is."""
    start = _small_vae(_start(recipe))
    if recipe.codec is None:
        assert start is not None
        (out / "codec").mkdir(parents=True, exist_ok=True)
        torch.save(start.state_dict(), out / "codec" / "vae.pt")
        return start
    clip_sets = [render_clips(out / "data", recipe.strangers), render_clips(out / "data", recipe.gallery)]
    held_out_clips = range(recipe.held_out_strangers.clips)
    held_out = torch.stack([to_float(make_clip(recipe.held_out_strangers, clip)[0]) for clip in held_out_clips])
    vae = train_codec(out / "codec", recipe.codec, clip_sets, held_out, start)
    calibrate(vae, clip_sets)
    torch.save(vae.state_dict(), out / "codec" / "vae.pt")
    return vae


def train_pretrain_stage(recipe: Recipe, out: Path) -> Generator:
    """Before stage 1: flow matching of a bidirectional model on the gallery's latents."""
    require(recipe.pretrain is not None, "stage", "one of a recipe that does not start from a model", "pretrain")
    assert recipe.pretrain is not None
    data = GeneratorData(recipe, out, "pretrain")
    evaluation = _held_out_error(recipe, recipe.pretrain, out)
    generator = train_bidirectional(
        out / "pretrain", recipe.pretrain, data.clips.latents, data.channel_weights, evaluation
    )
    torch.save(generator.state_dict(), out / "pretrain" / "generator.pt")
    return generator


def train_diffusion_stage(recipe: Recipe, out: Path) -> Generator:
    """Stage 1 of AAPT: teacher-forced flow matching on the gallery's latents.

    A new run starts from the recipe's `start`, else from the conversion of the stage pretrain if that has finished,
    else from random weights. Raises ValueError if one that has begun from something else would go on.
    """
    given = _start(recipe)
    start = given.generator if given else _pretrained(recipe, out)
    assert start is None or isinstance(start, Generator)
    _note_start(out / "diffusion", recipe.start or ("stage pretrain" if start else "random weights"))
    data = GeneratorData(recipe, out, "diffusion")
    generator = train_diffusion(
        out / "diffusion", recipe.diffusion, data.clips, data.channel_weights, data.evaluation, start
    )
    torch.save(generator.state_dict(), out / "diffusion" / "generator.pt")
    return generator


def train_consistency_stage(recipe: Recipe, out: Path) -> Generator:
    """Stage 2 of AAPT: consistency distillation of stage 1."""
    teacher = _load_generator(recipe, out, "diffusion")
    data = GeneratorData(recipe, out, "consistency")
    generator = train_consistency(
        out / "consistency", recipe.consistency, teacher, data.clips, data.channel_weights, data.evaluation
    )
    torch.save(generator.state_dict(), out / "consistency" / "generator.pt")
    return generator


def train_adversarial_stage(recipe: Recipe, out: Path, stage: str = "adversarial") -> Generator:
    """Stage 3 of AAPT: student forcing. Starts from stage 2 if it has finished, the discriminator from stage 1.

    Stage "reconstruction" is the same without the adversarial loss, for as many updates of the generator.
    """
    trunk = _load_generator(recipe, out, "diffusion")
    start = _load_generator(recipe, out, last_stage(out, before="adversarial"))
    config, data = recipe.adversarial, GeneratorData(recipe, out, stage)
    if stage == "reconstruction":
        alone = config.discriminator_alone
        config = dataclasses.replace(config, adversarial=0.0, balanced=False, steps=config.steps - alone)
    generator = train_adversarial(out / stage, config, start, trunk, data.clips, data.channel_weights, data.evaluation)
    torch.save(generator.state_dict(), out / stage / "generator.pt")
    return generator


class GeneratorData:
    """What the stages of the generator train on: clips of gallery and strangers in the finished codec's latents.

    `clips`; `channel_weights` [C] of the loss; `evaluation`, whose sample sheets go to the stage's folder.
    """

    def __init__(self, recipe: Recipe, out: Path, stage: str) -> None:
        vae, model = _load_codec(recipe, out), recipe.diffusion.model
        configs = (recipe.gallery, recipe.strangers)
        sets = [render_clips(out / "data", config) for config in configs]
        latents = torch.cat([encode_clips(vae, each, out / "data" / f"{each.config.name}.latents.pt") for each in sets])
        persons = [config.identity_seed(clip) for config in configs for clip in range(config.clips)]
        self.clips = LatentClips(latents, torch.cat([each.points for each in sets]), model, torch.tensor(persons))
        self.channel_weights = decoder_sensitivity(vae.decode, latents[:4, :, :6])
        self.evaluation = Evaluations(
            HeldOutRollout(vae, model, recipe.held_out_gallery, out / stage / "samples.png"),
            HeldOutRollout(vae, model, recipe.held_out_strangers, out / stage / "strangers.png"),
        )


@torch.no_grad()
def calibrate(vae: MiniVAE, clip_sets: list[ClipSet], clips: int = 16) -> None:
    """Set `latent_std` so that the latents of the data have unit standard deviation."""
    vae.latent_std.fill_(1.0)
    sample = [clip_set.clip(i) for clip_set in clip_sets for i in range(min(clips, len(clip_set)))]
    latents: list[Tensor] = [vae.encode(video[None]) for video in sample]
    vae.latent_std.copy_(torch.cat(latents).std())


@torch.no_grad()
def encode_clips(vae: MiniVAE, clip_set: ClipSet, path: Path) -> Tensor:
    """Latents [clips, C, 1 + n, h, w] of all clips; kept in `path`, made anew when codec or clips changed."""
    source = _fingerprint(vae, clip_set.config)
    if path.exists():
        kept = torch.load(path, weights_only=True)
        if kept.get("source") == source:
            return kept["latents"]
    batches = torch.arange(len(clip_set)).split(8)
    latents = torch.cat([vae.encode(torch.stack([clip_set.clip(int(i)) for i in batch])) for batch in batches])
    torch.save({"source": source, "latents": latents}, path)
    return latents


def _fingerprint(vae: MiniVAE, clips: ClipSetConfig) -> str:
    """A hash of what latents are made from: the weights of the codec, bit by bit, and the description of the clips."""
    digest = hashlib.sha256(repr(clips).encode())
    for weight in vae.state_dict().values():
        digest.update(weight.contiguous().numpy().tobytes())
    return digest.hexdigest()


def export(recipe: Recipe, out: Path) -> Path:
    """Write the bundle `out`/NAME: weights in float16, first frames, their poses."""
    bundle = out / recipe.name
    bundle.mkdir(parents=True, exist_ok=True)
    _load_trained(recipe, out).save_pretrained(bundle / "model.safetensors")
    first_frames, config = [], recipe.first_frames
    for number in range(config.clips):
        angles = config.motion(number)[:1]
        pixels = film(config, number, angles)[0]
        name = f"{number:02d}.png"
        Image.fromarray(pixels[0].numpy()).save(bundle / name)
        pose = [round(angle, 6) for angle in angles[0].tolist()]
        identity = config.identity_seed(number) if config.company is None else None  # alone it says the whole truth
        first_frames.append({"image": name, "identity": identity, "pose": pose})
    (bundle / "gallery.json").write_text(json.dumps({"world": "person", "first_frames": first_frames}, indent=1))
    return bundle


def evaluate(recipe: Recipe, out: Path) -> None:
    """Compare all finished stages on every held-out set; the reports go to `out`/evaluation/SET."""
    _load_trained(recipe, out)  # says what is missing before the pose network takes its time
    pose = pose_reader(recipe.pose, out / "pose_network")
    vae = _load_codec(recipe, out)
    rows = [
        Row(name, StreamModel(_load_generator(recipe, out, stage), vae, name=name), nfe)
        for name, stage, nfe in COMPARED
        if (out / stage / "generator.pt").exists()
    ]
    for config in recipe.held_out:
        evaluate_person(rows, pose, out / "evaluation" / config.name, config)


def _load_codec(recipe: Recipe, out: Path) -> MiniVAE:
    path = out / "codec" / "vae.pt"
    require(path.exists(), "out", f"a folder with a finished codec ({path})", "none; run stage codec first")
    start = _small_vae(_start(recipe))
    vae = start if recipe.codec is None else MiniVAE(recipe.codec.model)
    assert vae is not None
    vae.load_state_dict(torch.load(path, weights_only=True))
    return vae.eval().requires_grad_(False)


def _start(recipe: Recipe) -> StreamModel | None:
    return StreamModel.from_pretrained(recipe.start) if recipe.start else None


def _small_vae(model: StreamModel | None) -> MiniVAE | None:
    if model is None:
        return None
    require_type("start", model.vae, MiniVAE)
    assert isinstance(model.vae, MiniVAE)
    return model.vae


def _pretrained(recipe: Recipe, out: Path) -> Generator | None:
    """The start of stage 1 from the stage pretrain; None if that has not finished."""
    path, model = out / "pretrain" / "generator.pt", recipe.diffusion.model
    if not path.exists():
        return None
    generator = Generator(bidirectional(model))
    generator.load_state_dict(torch.load(path, weights_only=True))
    torch.manual_seed(recipe.diffusion.seed)
    return to_autoregressive(generator, model.control, window=model.window, control_width=model.control_width)


def _note_start(folder: Path, start: str) -> None:
    """Keep in `folder`/start.txt what a run starts from; refuse to go on with one that started from something else."""
    note = folder / "start.txt"
    if (folder / "checkpoint.pt").exists():
        began = note.read_text() if note.exists() else "random weights"
        require(began == start, "out", f"a run of stage 1 that started from {start} ({folder})", f"one from {began}")
    folder.mkdir(parents=True, exist_ok=True)
    note.write_text(start)


@torch.no_grad()
def _held_out_error(recipe: Recipe, pretrain: PretrainConfig, out: Path) -> HeldOutError:
    config = recipe.held_out_gallery
    videos = torch.stack([to_float(make_clip(config, clip)[0]) for clip in range(config.clips)])
    return HeldOutError(_load_codec(recipe, out).encode(videos)[:, :, : pretrain.clip_frames])


def last_stage(out: Path, before: str | None = None) -> str:
    """The last stage of the generator that has finished in `out`, of those before `before`; "diffusion" if none has."""
    stages = GENERATOR_STAGES[: GENERATOR_STAGES.index(before)] if before else GENERATOR_STAGES
    finished = [stage for stage in stages if (out / stage / "generator.pt").exists()]
    return finished[-1] if finished else "diffusion"


def _load_generator(recipe: Recipe, out: Path, stage: str) -> Generator:
    path = out / stage / "generator.pt"
    require(path.exists(), "out", f"a folder with a finished stage {stage} ({path})", f"none; run stage {stage} first")
    generator = Generator(recipe.diffusion.model)
    generator.load_state_dict(torch.load(path, weights_only=True))
    return generator.eval().requires_grad_(False)


def _load_trained(recipe: Recipe, out: Path) -> StreamModel:
    return StreamModel(_load_generator(recipe, out, last_stage(out)), _load_codec(recipe, out), name=recipe.name)
