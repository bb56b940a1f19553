# SPDX-License-Identifier: Apache-2.0
"""Stages of a recipe, from clips to evaluated one-step weights.

    make train-person        # from nothing to the evaluated one-step weights; resumable at any kill
    aapt-fast train anyone --out runs/anyone    # persons that it has never seen, from the bundled mini-person
    aapt-fast train company --out runs/company  # persons in company, from the bundled mini-person

The stages of AAPT start from the results that are there: stage 1 from the recipe's `start`, else from the stage
pretrain (a bidirectional model, converted), else from random weights; consistency from stage 1; adversarial from
consistency if that has finished, else from stage 1. `reconstruction` is no stage of AAPT but its baseline: adversarial
training without an adversary. The last finished stage of AAPT is exported; the evaluation compares all that have
finished.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from aapt_fast.errors import require, require_type
from aapt_fast.models.aapt.convert import bidirectional, to_autoregressive
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.mini import MiniVAE
from aapt_fast.training.adversarial import train_adversarial
from aapt_fast.training.clips import LatentClips
from aapt_fast.training.codec import train_codec
from aapt_fast.training.consistency import train_consistency
from aapt_fast.training.data import ClipSet, ClipSetConfig, held_out_clips, render_clips
from aapt_fast.training.diffusion import decoder_sensitivity, train_diffusion
from aapt_fast.training.evaluate import Row, evaluate
from aapt_fast.training.held_out import Evaluations, HeldOutRollout
from aapt_fast.training.pretrain import HeldOutError, train_bidirectional
from aapt_fast.training.recipes import Recipe, control_reader

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


def train(recipe: Recipe, out: Path, stages: tuple[str, ...] = MAIN_STAGES) -> None:
    """Run the stages in order; each starts from the results of those before in `out`, or resumes its own.

    Raises ValueError for an unknown stage or one whose predecessor has not finished.
    """
    for stage in stages:
        require(stage in STAGES, "stage", " | ".join(STAGES), stage)
    run = RecipeRun(recipe, out)
    actions = {
        "codec": run.train_codec,
        "pretrain": run.pretrain,
        "diffusion": run.train_diffusion,
        "consistency": run.train_consistency,
        "reconstruction": lambda: run.train_adversarial("reconstruction"),
        "adversarial": lambda: run.train_adversarial("adversarial"),
        "export": run.export,
        "evaluate": run.evaluate,
    }
    for stage in STAGES:
        if stage in stages:
            actions[stage]()


class RecipeRun:
    """The stages of one recipe in the folder `out`. Raises as `from_pretrained` does for the recipe's `start`."""

    def __init__(self, recipe: Recipe, out: Path) -> None:
        self._recipe, self._out = recipe, out
        self._start: tuple[Generator, MiniVAE] | None = None
        if recipe.start is not None:
            start = StreamModel.from_pretrained(recipe.start)
            require_type("start", start.generator, Generator)
            require_type("start", start.vae, MiniVAE)
            assert isinstance(start.generator, Generator) and isinstance(start.vae, MiniVAE)
            self._start = (start.generator, start.vae)

    def train_codec(self) -> None:
        """Stage 0: the VAE, on the gallery and on strangers; or that of the recipe's `start`, as it is."""
        recipe, folder = self._recipe, self._out / "codec"
        vae = self._start[1] if self._start else None
        if recipe.codec is not None:
            sets = [render_clips(self._out / "data", config) for config in (recipe.strangers, recipe.gallery)]
            vae = train_codec(folder, recipe.codec, sets, held_out_clips(recipe.held_out_strangers)[0], vae)
            calibrate(vae, sets)
        assert vae is not None  # as Recipe checks
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(vae.state_dict(), folder / "vae.pt")

    def pretrain(self) -> None:
        """Before stage 1: flow matching of a bidirectional model on the gallery's latents, if the recipe has it."""
        config = self._recipe.pretrain
        if config is None:
            return
        data = GeneratorData(self._recipe, self._out, "pretrain", self._codec())
        with torch.no_grad():
            held_out = self._codec().encode(held_out_clips(self._recipe.held_out_gallery)[0])
        evaluation = HeldOutError(held_out[:, :, : config.clip_frames])
        folder, latents = self._out / "pretrain", data.clips.latents
        self._save("pretrain", train_bidirectional(folder, config, latents, data.channel_weights, evaluation))

    def train_diffusion(self) -> None:
        """Stage 1 of AAPT: teacher-forced flow matching on the gallery's latents.

        A new run starts from the recipe's `start`, else from the conversion of the stage pretrain if that has finished,
        else from random weights. Raises ValueError for a run that has begun from something else.
        """
        recipe, folder = self._recipe, self._out / "diffusion"
        start = self._start[0] if self._start else self._pretrained()
        _note_start(folder, recipe.start or ("stage pretrain" if start else "random weights"))
        data = GeneratorData(recipe, self._out, "diffusion", self._codec())
        generator = train_diffusion(folder, recipe.diffusion, data.clips, data.channel_weights, data.evaluation, start)
        self._save("diffusion", generator)

    def train_consistency(self) -> None:
        """Stage 2 of AAPT: consistency distillation of stage 1."""
        teacher, folder = self._generator("diffusion"), self._out / "consistency"
        data = GeneratorData(self._recipe, self._out, "consistency", self._codec())
        generator = train_consistency(
            folder, self._recipe.consistency, teacher, data.clips, data.channel_weights, data.evaluation
        )
        self._save("consistency", generator)

    def train_adversarial(self, stage: str) -> None:
        """Stage 3 of AAPT: student forcing. Starts from stage 2 if it has finished, the discriminator from stage 1.

        `stage` "reconstruction" is the same without the adversarial loss, for as many updates of the generator.
        """
        trunk = self._generator("diffusion")
        start = self._generator(last_stage(self._out, before="adversarial"))
        config, data = self._recipe.adversarial, GeneratorData(self._recipe, self._out, stage, self._codec())
        if stage == "reconstruction":
            steps = config.steps - config.discriminator_alone
            config = dataclasses.replace(config, adversarial=0.0, balanced=False, steps=steps)
        folder = self._out / stage
        generator = train_adversarial(folder, config, start, trunk, data.clips, data.channel_weights, data.evaluation)
        self._save(stage, generator)

    def export(self) -> None:
        """Write the bundle `out`/NAME: weights in float16, first frames, and the states of the world in them."""
        recipe, bundle = self._recipe, self._out / self._recipe.name
        model = StreamModel(self._generator(last_stage(self._out)), self._codec(), name=recipe.name)
        bundle.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(bundle / "model.safetensors")
        entries, config = [], recipe.first_frames
        for number in range(config.clips):
            frame, name = config.world.first_frame(config.seed, number, config.size), f"{number:02d}.png"
            Image.fromarray(frame.image).save(bundle / name)
            entries.append({"image": name, "identity": frame.scene, "pose": frame.pose})
        gallery = {"world": config.world.name, "first_frames": entries}
        (bundle / "gallery.json").write_text(json.dumps(gallery, indent=1))

    def evaluate(self) -> None:
        """Compare all finished stages on every held-out set; the reports go to `out`/evaluation/SET."""
        self._generator(last_stage(self._out))  # a missing stage is named before the reader takes its time
        vae = self._codec()
        rows = [
            Row(name, StreamModel(self._generator(stage), vae, name=name), nfe)
            for name, stage, nfe in COMPARED
            if (self._out / stage / "generator.pt").exists()
        ]
        for config in self._recipe.held_out:
            reader = control_reader(config, self._out / "pose_network")
            evaluate(rows, config, reader, self._out / "evaluation" / config.name)

    def _save(self, stage: str, generator: Generator) -> None:
        torch.save(generator.state_dict(), self._out / stage / "generator.pt")

    def _codec(self) -> MiniVAE:
        """The finished codec, frozen."""
        path, config = self._out / "codec" / "vae.pt", self._recipe.codec
        require(path.exists(), "out", f"a folder with a finished codec ({path})", "none; run stage codec first")
        if config is None:
            assert self._start is not None  # as Recipe checks
            vae = MiniVAE(self._start[1].config)
        else:
            vae = MiniVAE(config.model)
        vae.load_state_dict(torch.load(path, weights_only=True))
        return vae.eval().requires_grad_(False)

    def _generator(self, stage: str) -> Generator:
        """The generator of a finished stage, frozen."""
        path = self._out / stage / "generator.pt"
        found = f"none; run stage {stage} first"
        require(path.exists(), "out", f"a folder with a finished stage {stage} ({path})", found)
        generator = Generator(self._recipe.diffusion.model)
        generator.load_state_dict(torch.load(path, weights_only=True))
        return generator.eval().requires_grad_(False)

    def _pretrained(self) -> Generator | None:
        """The start of stage 1 from the stage pretrain; None if that has not finished."""
        path, model = self._out / "pretrain" / "generator.pt", self._recipe.diffusion.model
        if not path.exists():
            return None
        generator = Generator(bidirectional(model))
        generator.load_state_dict(torch.load(path, weights_only=True))
        torch.manual_seed(self._recipe.diffusion.seed)
        return to_autoregressive(generator, model.control, window=model.window, control_width=model.control_width)


class GeneratorData:
    """Training data of a generator: clips of gallery and strangers in the latents of the finished codec `vae`.

    `clips`; `channel_weights` [C] of the loss; `evaluation`, whose sample sheets go to the stage's folder.
    """

    def __init__(self, recipe: Recipe, out: Path, stage: str, vae: MiniVAE) -> None:
        model, configs = recipe.diffusion.model, (recipe.gallery, recipe.strangers)
        sets = [render_clips(out / "data", config) for config in configs]
        latents = torch.cat([encode_clips(vae, each, out / "data" / f"{each.config.name}.latents.pt") for each in sets])
        scenes = torch.tensor([config.scene(clip) for config in configs for clip in range(config.clips)])
        self.clips = LatentClips(latents, torch.cat([each.controls for each in sets]), model, scenes)
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
    """Hash of the weights of the codec, bit by bit, and of the card of the clips: latents are made from both."""
    digest = hashlib.sha256(json.dumps(clips.card(), sort_keys=True).encode())
    for weight in vae.state_dict().values():
        digest.update(weight.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _note_start(folder: Path, start: str) -> None:
    """Keep the start of a run in `folder`/start.txt; refuse to resume a run that started from something else."""
    note = folder / "start.txt"
    if (folder / "checkpoint.pt").exists():
        began = note.read_text() if note.exists() else "random weights"
        require(began == start, "out", f"a run of stage 1 that started from {start} ({folder})", f"one from {began}")
    folder.mkdir(parents=True, exist_ok=True)
    note.write_text(start)


def last_stage(out: Path, before: str | None = None) -> str:
    """The last stage of the generator that has finished in `out`, of those before `before`; "diffusion" if none has."""
    stages = GENERATOR_STAGES[: GENERATOR_STAGES.index(before)] if before else GENERATOR_STAGES
    finished = [stage for stage in stages if (out / stage / "generator.pt").exists()]
    return finished[-1] if finished else "diffusion"
