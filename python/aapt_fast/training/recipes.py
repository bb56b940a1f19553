# SPDX-License-Identifier: Apache-2.0
"""Recipes: which data, which stages and which settings make a bundled model.

make train-person        # renders, trains the codec and stage 1, exports and evaluates; resumable at any kill

The later stages of AAPT start from what is there: consistency from stage 1, adversarial from consistency if that has
finished, else from stage 1. What is exported and evaluated is the last stage that has finished. The optional stage
pretrain trains a bidirectional model; once it has finished, a new stage 1 starts from its conversion.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from aapt_fast.errors import require
from aapt_fast.models.checkpoint import save_model
from aapt_fast.models.config import GeneratorConfig
from aapt_fast.models.convert import bidirectional, to_autoregressive
from aapt_fast.models.generator import Generator
from aapt_fast.models.mini_vae import MiniVAE
from aapt_fast.models.presets import MINI_PERSON
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.streaming.controls import clip_controls
from aapt_fast.training.adversarial import AdversarialConfig, train_adversarial
from aapt_fast.training.clips import LatentClips
from aapt_fast.training.codec import CodecConfig, train_codec
from aapt_fast.training.consistency import ConsistencyConfig, train_consistency
from aapt_fast.training.data import ClipSet, ClipSetConfig, make_clip, render_clips, to_float
from aapt_fast.training.diffusion import DiffusionConfig, decoder_sensitivity, train_diffusion
from aapt_fast.training.evaluate import HELD_OUT, Row, evaluate_person
from aapt_fast.training.metrics import psnr, sharpness
from aapt_fast.training.pose_network import PoseNetworkConfig, pose_reader
from aapt_fast.training.pretrain import HeldOutError, PretrainConfig, train_bidirectional
from aapt_fast.training.rollout import rollout
from aapt_fast.training.sheet import save_sheet
from aapt_fast.worlds.motions import random_motion
from aapt_fast.worlds.person import make_identity, render
from aapt_fast.worlds.skeleton import forward_kinematics

STAGES = ("codec", "pretrain", "diffusion", "consistency", "adversarial", "export", "evaluate")
MAIN_STAGES = ("codec", "diffusion", "export", "evaluate")  # what makes the bundled model
GENERATOR_STAGES = ("diffusion", "consistency", "adversarial")

GALLERY = 16  # persons and rooms the generator knows
STRANGERS_CLIPS = ClipSetConfig("open", clips=640, seed=1)
GALLERY_CLIPS = ClipSetConfig("gallery", clips=960, identities=GALLERY, seed=2)
HELD_OUT_STRANGERS = ClipSetConfig("held-out-strangers", clips=8, seed=3)
HELD_OUT_GALLERY = ClipSetConfig("held-out-gallery", clips=8, identities=GALLERY, seed=5)
FIRST_FRAMES = ClipSetConfig("first-frames", clips=GALLERY, frames=5, identities=GALLERY, seed=6)

CODEC = CodecConfig()
PRETRAIN = PretrainConfig(model=bidirectional(MINI_PERSON))
DIFFUSION = DiffusionConfig(model=MINI_PERSON, steps=5500, recycled_noise=0.15)
CONSISTENCY = ConsistencyConfig(model=MINI_PERSON)
ADVERSARIAL = AdversarialConfig(model=MINI_PERSON, identities=GALLERY, adversarial=0.02)
POSE_NETWORK = PoseNetworkConfig()  # of the evaluation; nothing is trained with it


def train_person(out: Path, stages: tuple[str, ...] = MAIN_STAGES) -> None:
    """Run the stages in order; each starts from what the one before left in `out`, and goes on where it was killed.

    Raises ValueError for an unknown stage or one whose predecessor has not finished.
    """
    for stage in stages:
        require(stage in STAGES, "stage", " | ".join(STAGES), stage)
    if "codec" in stages:
        train_codec_stage(out, CODEC)
    if "pretrain" in stages:
        train_pretrain_stage(out, PRETRAIN)
    if "diffusion" in stages:
        train_diffusion_stage(out, DIFFUSION)
    if "consistency" in stages:
        train_consistency_stage(out, CONSISTENCY)
    if "adversarial" in stages:
        train_adversarial_stage(out, ADVERSARIAL)
    if "export" in stages:
        export_person(out)
    if "evaluate" in stages:
        pose = pose_reader(POSE_NETWORK, out / "pose_network")
        evaluate_person([Row("model", _load_trained(out))], pose, out / "evaluation", HELD_OUT)


def train_codec_stage(out: Path, config: CodecConfig) -> MiniVAE:
    """Stage 0: the VAE, on people of the gallery and on strangers."""
    clip_sets = [render_clips(out / "data", STRANGERS_CLIPS), render_clips(out / "data", GALLERY_CLIPS)]
    held_out = torch.stack([to_float(make_clip(HELD_OUT_STRANGERS, i)[0]) for i in range(HELD_OUT_STRANGERS.clips)])
    vae = train_codec(out / "codec", config, clip_sets, held_out)
    calibrate(vae, clip_sets)
    torch.save(vae.state_dict(), out / "codec" / "vae.pt")
    return vae


@torch.no_grad()
def _held_out_error(out: Path, frames: int) -> HeldOutError:
    videos = [to_float(make_clip(HELD_OUT_GALLERY, i)[0]) for i in range(HELD_OUT_GALLERY.clips)]
    return HeldOutError(_load_codec(out).encode(torch.stack(videos))[:, :, :frames])


def train_pretrain_stage(out: Path, config: PretrainConfig) -> Generator:
    """Before stage 1, optional: flow matching of a bidirectional model on the gallery's latents."""
    data = GalleryData(out, "pretrain", DIFFUSION.model)
    evaluation = _held_out_error(out, config.clip_frames)
    generator = train_bidirectional(out / "pretrain", config, data.clips.latents, data.channel_weights, evaluation)
    torch.save(generator.state_dict(), out / "pretrain" / "generator.pt")
    return generator


def train_diffusion_stage(out: Path, config: DiffusionConfig) -> Generator:
    """Stage 1 of AAPT: teacher-forced flow matching on the gallery's latents.

    A new run starts from the conversion of the stage pretrain if that has finished, else from random weights.
    """
    data = GalleryData(out, "diffusion", config.model)
    generator = train_diffusion(
        out / "diffusion", config, data.clips, data.channel_weights, data.evaluation, _pretrained(out, config)
    )
    torch.save(generator.state_dict(), out / "diffusion" / "generator.pt")
    return generator


def train_consistency_stage(out: Path, config: ConsistencyConfig) -> Generator:
    """Stage 2 of AAPT: consistency distillation of stage 1."""
    teacher = _load_generator(out, "diffusion")
    data = GalleryData(out, "consistency", config.model)
    generator = train_consistency(
        out / "consistency", config, teacher, data.clips, data.channel_weights, data.evaluation
    )
    torch.save(generator.state_dict(), out / "consistency" / "generator.pt")
    return generator


def train_adversarial_stage(out: Path, config: AdversarialConfig) -> Generator:
    """Stage 3 of AAPT: student forcing. Starts from stage 2 if it has finished, the discriminator from stage 1."""
    trunk = _load_generator(out, "diffusion")
    start = _load_generator(out, last_stage(out, before="adversarial"))
    data = GalleryData(out, "adversarial", config.model)
    generator = train_adversarial(
        out / "adversarial", config, start, trunk, data.clips, data.channel_weights, data.evaluation
    )
    torch.save(generator.state_dict(), out / "adversarial" / "generator.pt")
    return generator


class GalleryData:
    """What the stages of the generator train on: the gallery's clips in the finished codec's latents.

    `clips`; `channel_weights` [C] of the loss; `evaluation`, whose sample sheets go to the stage's folder.
    """

    def __init__(self, out: Path, stage: str, model: GeneratorConfig) -> None:
        vae = _load_codec(out)
        clip_set = render_clips(out / "data", GALLERY_CLIPS)
        latents = encode_clips(vae, clip_set, out / "data" / "gallery.latents.pt")
        self.clips = LatentClips(latents, clip_set.points, model)
        self.channel_weights = decoder_sensitivity(vae.decode, latents[:4, :, :6])
        self.evaluation = HeldOutRollout(vae, model, HELD_OUT_GALLERY, out / stage / "samples.png")


@torch.no_grad()
def calibrate(vae: MiniVAE, clip_sets: list[ClipSet], clips: int = 16) -> None:
    """Set `latent_std` so that the latents of the data have unit standard deviation."""
    vae.latent_std.fill_(1.0)
    sample = [clip_set.clip(i) for clip_set in clip_sets for i in range(min(clips, len(clip_set)))]
    latents: list[Tensor] = [vae.encode(video[None]) for video in sample]
    vae.latent_std.copy_(torch.cat(latents).std())


@torch.no_grad()
def encode_clips(vae: MiniVAE, clip_set: ClipSet, path: Path) -> Tensor:
    """Latents [clips, C, 1 + n, h, w] of all clips; kept in `path`, made anew when the codec changed."""
    stamp = float(torch.stack([p.double().square().sum() for p in vae.state_dict().values()]).sum())
    if path.exists():
        kept = torch.load(path, weights_only=True)
        if kept["codec"] == stamp and len(kept["latents"]) == len(clip_set):
            return kept["latents"]
    batches = torch.arange(len(clip_set)).split(8)
    latents = torch.cat([vae.encode(torch.stack([clip_set.clip(int(i)) for i in batch])) for batch in batches])
    torch.save({"codec": stamp, "latents": latents}, path)
    return latents


class HeldOutRollout:
    """The evaluation during training: one-evaluation rollouts of held-out motions, PSNR at a few video frames.

    Every call writes the sample sheet `sheet`: rows of truth and generated video.
    """

    def __init__(self, vae: MiniVAE, model: GeneratorConfig, config: ClipSetConfig, sheet: Path) -> None:
        require(model.control is not None, "model.control", "a pose control", None)
        assert model.control is not None
        clips = [make_clip(config, i) for i in range(config.clips)]
        self._vae, self._sheet = vae, sheet
        self._truth = torch.stack([to_float(video) for video, _ in clips])
        self._controls = clip_controls(torch.stack([points for _, points in clips]), model.control, model.grid)
        self._image = vae.encode(self._truth[:, :, :1]).detach()

    @torch.no_grad()
    def __call__(self, generator: Generator) -> dict[str, float]:
        frames = rollout(generator, self._image, self._controls, torch.arange(len(self._truth)))
        video = self._vae.decode(torch.cat([self._image, frames], dim=2))
        picks = torch.linspace(0, video.shape[2] - 1, 9).long()
        rows = [row[i][:, picks].transpose(0, 1) for i in range(4) for row in (self._truth, video)]
        save_sheet(self._sheet, rows, zoom=2)
        curve = psnr(video, self._truth).mean(0)
        sharp = sharpness(video, self._truth)[:, len(curve) * 2 // 3 :].mean()
        marks = [mark for mark in (4, 12, 40, 60, 120, 240) if mark < len(curve)]
        return {**{f"psnr_{mark}": float(curve[mark]) for mark in marks}, "sharpness": float(sharp)}


def export_person(out: Path) -> Path:
    """Write the bundle `out`/mini-person: weights in float16, first frames, their poses."""
    bundle = out / "mini-person"
    bundle.mkdir(parents=True, exist_ok=True)
    save_model(bundle / "model.safetensors", _load_trained(out))
    first_frames = []
    for number in range(FIRST_FRAMES.clips):
        angles = random_motion(FIRST_FRAMES.frames, FIRST_FRAMES.motion_seed(number))[:1]
        identity = make_identity(FIRST_FRAMES.identity_seed(number))
        pixels = (render(forward_kinematics(angles), identity, FIRST_FRAMES.size) * 255 + 0.5).byte()
        name = f"{number:02d}.png"
        Image.fromarray(pixels[0].permute(1, 2, 0).numpy()).save(bundle / name)
        pose = [round(angle, 6) for angle in angles[0].tolist()]
        first_frames.append({"image": name, "identity": FIRST_FRAMES.identity_seed(number), "pose": pose})
    (bundle / "gallery.json").write_text(json.dumps({"world": "person", "first_frames": first_frames}, indent=1))
    return bundle


def _load_codec(out: Path) -> MiniVAE:
    path = out / "codec" / "vae.pt"
    require(path.exists(), "out", f"a folder with a finished codec ({path})", "none; run stage codec first")
    vae = MiniVAE(CODEC.model)
    vae.load_state_dict(torch.load(path, weights_only=True))
    return vae.eval().requires_grad_(False)


def _pretrained(out: Path, config: DiffusionConfig) -> Generator | None:
    """The start of stage 1 from the stage pretrain; None if that has not finished."""
    path, model = out / "pretrain" / "generator.pt", config.model
    if not path.exists():
        return None
    generator = Generator(bidirectional(model))
    generator.load_state_dict(torch.load(path, weights_only=True))
    torch.manual_seed(config.seed)
    return to_autoregressive(
        generator,
        model.control,
        window=model.window,
        control_width=model.control_width,
    )


def last_stage(out: Path, before: str | None = None) -> str:
    """The last stage of the generator that has finished in `out`, of those before `before`; "diffusion" if none has."""
    stages = GENERATOR_STAGES[: GENERATOR_STAGES.index(before)] if before else GENERATOR_STAGES
    finished = [stage for stage in stages if (out / stage / "generator.pt").exists()]
    return finished[-1] if finished else "diffusion"


def _load_generator(out: Path, stage: str) -> Generator:
    path = out / stage / "generator.pt"
    number = GENERATOR_STAGES.index(stage) + 1
    require(path.exists(), "out", f"a folder with a finished stage {number} ({path})", f"none; run stage {stage} first")
    generator = Generator(DIFFUSION.model)
    generator.load_state_dict(torch.load(path, weights_only=True))
    return generator.eval().requires_grad_(False)


def _load_trained(out: Path) -> StreamModel:
    return StreamModel(_load_generator(out, last_stage(out)), _load_codec(out), name="mini-person")
