# SPDX-License-Identifier: Apache-2.0
"""Stages of a recipe, from clips to evaluated one-step weights.

    make train-person        # from nothing to the evaluated one-step weights; resumable at any kill
    aapt-fast train anyone --out runs/anyone    # persons that it has never seen, from the bundled mini-person
    aapt-fast train rooms --out runs/rooms      # walks through rooms, where chance has a part
    aapt-fast train person --trial --out runs/trial  # the same stages in minutes, to see that they work

The stages of AAPT start from the results that are there: stage 1 from the recipe's `start`, else from the stage
pretrain (a bidirectional model, converted), else from random weights; consistency from stage 1; adversarial from
consistency if that has finished, else from stage 1. `reconstruction` is no stage of AAPT but its baseline: adversarial
training without an adversary. The last finished stage of AAPT is exported; the evaluation compares all that have
finished.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from aapt_fast.atomic import replacing
from aapt_fast.errors import require, require_type
from aapt_fast.models.aapt.convert import bidirectional, to_autoregressive
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.files.load_vae import load_vae
from aapt_fast.models.files.model_file import write_vae
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.mini import MiniVAE, MiniVAEConfig
from aapt_fast.progress import progress, say
from aapt_fast.training.adversarial import train_adversarial
from aapt_fast.training.clips import LatentClips
from aapt_fast.training.codec import train_codec
from aapt_fast.training.consistency import train_consistency
from aapt_fast.training.data import ClipSet, ClipSetConfig, held_out_clips, render_clips
from aapt_fast.training.diffusion import Evaluation, decoder_sensitivity, train_diffusion
from aapt_fast.training.evaluate import Row, evaluate
from aapt_fast.training.files import fingerprint, load_finite, load_module, save_finite, write_text
from aapt_fast.training.held_out import HeldOutRollout
from aapt_fast.training.own_folder import STAGES
from aapt_fast.training.place import ALONE, Place
from aapt_fast.training.plan import (
    WITHOUT_CLIPS,
    describe_plan,
    describe_state,
    require_room,
    result_path,
    stage_config,
)
from aapt_fast.training.pretrain import HeldOutError, train_bidirectional
from aapt_fast.training.recipe_folder import note_recipe, require_same_recipe
from aapt_fast.training.recipes import Recipe, control_reader
from aapt_fast.training.rows import Rows
from aapt_fast.training.run import CHECKPOINT, Stop, Watch, never_stop

Model = TypeVar("Model", Generator, MiniVAE)

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


@torch.inference_mode(False)
def train(
    recipe: Recipe,
    out: Path,
    stages: tuple[str, ...] = MAIN_STAGES,
    stop: Stop = never_stop,
    place: Place = ALONE,
) -> None:
    """Run the stages in order; each starts from the results of those before in `out`, or resumes its own.

    The plan is written to stderr first. `stop` is that of `Watch`; a KeyboardInterrupt says what is on disk. All ranks
    of `place` have to call this; they share the file system that `out` is on. Clips, export and evaluation are made by
    the first of them.

    Raises ValueError for an unknown stage, one whose predecessor has not finished, a folder in which another process is
    training, that belongs to another recipe or holds other files, a recipe that fits neither memory nor disk, and more
    ranks than a batch has rows.
    """
    for stage in stages:
        require(stage in STAGES, "stage", " | ".join(STAGES), stage)
    chosen = [stage for stage in STAGES if stage in stages]
    require_room(recipe, out, chosen)
    for stage in chosen:
        if (config := stage_config(recipe, stage)) is not None:
            place.share(config.batch)  # raises for more ranks than rows
    run = RecipeRun(recipe, out, place)
    run.require_own_folder()
    run.require_predecessors(chosen)
    place.wait()  # no rank writes before all have looked
    with _alone_in(out) if place.is_first else nullcontext():
        if place.is_first:
            run.require_own_folder()  # again, as a process that has just ended may have taken the folder
            note_recipe(recipe, out)
        say(describe_plan(recipe, out, chosen))
        for number, stage in enumerate(chosen, 1):
            title = f"stage {number} of {len(chosen)}: {stage}"
            say(f"{title} begins")
            try:
                run.take(stage, Watch(title, stop))
            except KeyboardInterrupt:
                state = describe_state(recipe, out, stage)
                raise KeyboardInterrupt(f"stopped in stage {stage}; {state}. The same command resumes.") from None


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """Keep every other process from training in this folder; a process that is killed keeps nobody."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as file:
        if os.name == "posix":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                require(False, "out", "a folder in which no other process is training", out)
        yield


class RecipeRun:
    """The stages of one recipe in the folder `out`, trained at `place`.

    Raises as `from_pretrained` does for the recipe's `start`.
    """

    def __init__(self, recipe: Recipe, out: Path, place: Place = ALONE) -> None:
        self._recipe, self._out, self._place = recipe, out, place
        self._start: tuple[Generator, MiniVAE] | None = None
        if recipe.start is not None:
            start = StreamModel.from_pretrained(recipe.start)
            require_type("start", start.generator, Generator)
            require_type("start", start.vae, MiniVAE)
            assert isinstance(start.generator, Generator) and isinstance(start.vae, MiniVAE)
            self._start = (start.generator, start.vae)
        self._given_codec = self._start[1] if self._start else None
        if recipe.vae is not None:
            vae = load_vae(recipe.vae, dtype=torch.float32)
            require_type("vae", vae, MiniVAE)
            assert isinstance(vae, MiniVAE)
            self._given_codec = vae
        model, width = recipe.diffusion.model, self._codec_config.latent_channels
        expected = f"a codec of {model.latent_channels} channels, those of the generator"
        require(width == model.latent_channels, "codec", expected, width)

    def require_own_folder(self) -> None:
        """Raise ValueError if the folder belongs to another recipe."""
        require_same_recipe(self._recipe, self._out, self._given_codec)

    def require_predecessors(self, stages: Sequence[str]) -> None:
        """Raise ValueError if one of `stages` needs another that has not finished and is not among them.

        All but the codec need the codec; the stages after stage 1 need stage 1, export and evaluation any generator.
        """
        for stage in stages:
            if stage == "codec" or (stage == "pretrain" and self._recipe.pretrain is None):
                continue
            needed = ["codec"]
            if stage in WITHOUT_CLIPS:
                needed.insert(0, last_stage(self._out))
            elif stage not in ("pretrain", "diffusion"):
                needed.insert(0, "diffusion")
            for name in needed:
                if name not in stages:
                    self._require_finished(name)

    def take(self, stage: str, watch: Watch) -> None:
        """Run a stage of `STAGES`, or take over what is there of it; returns when all ranks have done so."""
        if stage in WITHOUT_CLIPS:
            if self._place.is_first:
                self._export() if stage == "export" else self._evaluate()
        elif stage != "pretrain" or self._recipe.pretrain is not None:
            trainings: dict[str, Callable[[str, Path, Watch], Generator | MiniVAE]] = {
                "codec": self._train_codec,
                "pretrain": self._pretrain,
                "diffusion": self._train_diffusion,
                "consistency": self._train_consistency,
            }
            model = trainings.get(stage, self._train_adversarial)(stage, self._out / stage, watch)
            weights = self._place.whole_state(model)
            if self._place.is_first:
                (self._out / stage).mkdir(parents=True, exist_ok=True)
                save_finite(result_path(self._out, stage), weights)
                if stage == "codec":
                    write_vae(self._out / stage / "vae.safetensors", self._codec(), self._recipe.name, "float16")
        self._place.wait()

    def _train_codec(self, stage: str, folder: Path, watch: Watch) -> MiniVAE:
        """Stage 0: the VAE, on all sets of the codec; or the one that the recipe gives, as it is."""
        recipe, vae = self._recipe, self._given_codec
        if recipe.codec is not None:
            sets, own = self._clip_sets(recipe.codec_sets), recipe.held_out_strangers or recipe.held_out_gallery
            held_out = {"": held_out_clips(own)[0]}
            held_out |= {f"{other.world.name}_": held_out_clips(other)[0] for _, other in recipe.also_coded}
            vae = train_codec(folder, recipe.codec, sets, held_out, vae, watch, self._place)
            with self._place.evaluating():
                calibrate(vae, sets)
        assert vae is not None  # as Recipe checks
        return vae

    def _pretrain(self, stage: str, folder: Path, watch: Watch) -> Generator:
        """Before stage 1: flow matching of a bidirectional model on the gallery's latents."""
        config, (clips, channel_weights, _) = self._recipe.pretrain, self._data(stage)
        assert config is not None  # as `take` checks
        with torch.no_grad():
            vae, device = self._codec(), self._place.device
            video, _ = held_out_clips(self._recipe.held_out_gallery)
            held_out = vae.to(device).encode(video.to(device)).cpu()
        evaluation = HeldOutError(held_out[:, :, : config.clip_frames])
        return train_bidirectional(folder, config, clips.latents, channel_weights, evaluation, watch, self._place)

    def _train_diffusion(self, stage: str, folder: Path, watch: Watch) -> Generator:
        """Stage 1 of AAPT: teacher-forced flow matching on the gallery's latents.

        A new run starts from the recipe's `start`, else from the conversion of the stage pretrain if that has finished,
        else from random weights. Raises ValueError for a run that has begun from something else.
        """
        recipe = self._recipe
        start = self._start[0] if self._start else self._pretrained()
        self._place.in_turn(
            lambda: _note_start(folder, recipe.start or ("stage pretrain" if start else "random weights"))
        )
        return train_diffusion(folder, recipe.diffusion, *self._data(stage), start, watch, self._place)

    def _train_consistency(self, stage: str, folder: Path, watch: Watch) -> Generator:
        """Stage 2 of AAPT: consistency distillation of stage 1."""
        teacher = self._generator("diffusion")
        config = self._recipe.consistency
        return train_consistency(folder, config, teacher, *self._data(stage), watch, self._place)

    def _train_adversarial(self, stage: str, folder: Path, watch: Watch) -> Generator:
        """Stage 3 of AAPT: student forcing. Starts from stage 2 if it has finished, the discriminator from stage 1.

        The stage "reconstruction" is the same without the adversarial loss, for as many updates of the generator.
        """
        trunk = self._generator("diffusion")
        start = self._generator(last_stage(self._out, before="adversarial"))
        config = stage_config(self._recipe, stage)
        return train_adversarial(folder, config, start, trunk, *self._data(stage), watch, self._place)

    def _export(self) -> None:
        """Write the bundle `out`/NAME: weights in float16, first frames, and the states of the world in them."""
        recipe, bundle = self._recipe, self._out / self._recipe.name
        model = StreamModel(self._generator(last_stage(self._out)), self._codec(), name=recipe.name)
        bundle.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(bundle / "model.safetensors")
        entries, config = [], recipe.first_frames
        for number in range(config.clips):
            frame, name = config.world.first_frame(config.seed, number, config.size), f"{number:02d}.png"
            with replacing(bundle / name) as partial:
                Image.fromarray(frame.image).save(partial)
            entries.append({"image": name, "identity": frame.scene, "pose": frame.pose})
        gallery = {"world": config.world.name, "first_frames": entries}
        write_text(bundle / "gallery.json", json.dumps(gallery, indent=1))

    def _evaluate(self) -> None:
        """Compare all finished stages on every held-out set; the reports go to `out`/evaluation/SET."""
        self._generator(last_stage(self._out))  # a missing stage is named before the reader takes its time
        vae = self._codec()
        rows = [
            Row(name, StreamModel(self._generator(stage), vae, name=name), nfe)
            for name, stage, nfe in COMPARED
            if result_path(self._out, stage).exists()
        ]
        for config in self._recipe.held_out:
            reader = None if self._recipe.trial else control_reader(config, self._out / "pose_network")
            evaluate(rows, config, reader, self._out / "evaluation" / config.name)

    def _data(self, stage: str) -> tuple[LatentClips, Tensor, Evaluation]:
        """Training data of a generator: clips of gallery and strangers in latents, and weights [C] of their channels.

        The evaluation during training comes with them; its sample sheets go to the stage's folder.
        """
        recipe, vae, folder = self._recipe, self._codec().to(self._place.device), self._out / "data"
        model, configs = recipe.diffusion.model, recipe.training_sets[::-1]
        sets = self._clip_sets(configs)
        latents = torch.cat(self._place.in_turn(lambda: [encode_clips(vae, each, folder) for each in sets]))
        scenes = torch.tensor([config.scene(clip) for config in configs for clip in range(config.clips)])
        clips = LatentClips(latents, torch.cat([each.controls for each in sets]), model, scenes)
        sheets = [
            self._out / stage / name if self._place.is_first else None for name in ("samples.png", "strangers.png")
        ]
        rollouts = [HeldOutRollout(vae, model, recipe.held_out_gallery, sheets[0])]
        if recipe.held_out_strangers is not None:
            rollouts.append(HeldOutRollout(vae, model, recipe.held_out_strangers, sheets[1], "strangers_"))
        weights = decoder_sensitivity(vae.decode, latents[:4, :, :6].to(self._place.device))

        def evaluation(generator: Generator) -> dict[str, float]:
            return {name: value for each in rollouts for name, value in each(generator).items()}

        return clips, weights, evaluation

    def _clip_sets(self, configs: Sequence[ClipSetConfig]) -> list[ClipSet]:
        """The clips of these sets, rendered by the first rank."""
        folder = self._out / "data"
        return self._place.in_turn(lambda: [render_clips(folder, config) for config in configs])

    def _codec(self) -> MiniVAE:
        """The finished codec, frozen."""
        return self._load(MiniVAE(self._codec_config), "codec")

    @property
    def _codec_config(self) -> MiniVAEConfig:
        if self._recipe.codec is not None:
            return self._recipe.codec.model
        assert self._given_codec is not None  # as Recipe checks
        return self._given_codec.config

    def _generator(self, stage: str) -> Generator:
        """The generator of a finished stage, frozen."""
        return self._load(Generator(self._recipe.diffusion.model), stage)

    def _pretrained(self) -> Generator | None:
        """The start of stage 1 from the stage pretrain; None if that has not finished."""
        model = self._recipe.diffusion.model
        if not result_path(self._out, "pretrain").exists():
            return None
        generator = self._load(Generator(bidirectional(model)), "pretrain")
        torch.manual_seed(self._recipe.diffusion.seed)
        return to_autoregressive(generator, model.control, window=model.window, control_width=model.control_width)

    def _load(self, model: Model, stage: str) -> Model:
        self._require_finished(stage)
        path = result_path(self._out, stage)
        load_module(model, load_finite(path), path)
        return model.eval().requires_grad_(False)

    def _require_finished(self, stage: str) -> None:
        path = result_path(self._out, stage)
        found = f"none; run stage {stage} first"
        require(path.exists(), "out", f"a folder with a finished stage {stage} ({path})", found)


@torch.no_grad()
def calibrate(vae: MiniVAE, clip_sets: list[ClipSet], clips: int = 16) -> None:
    """Set `latent_std` so that the latents of the data have unit standard deviation."""
    vae.latent_std.fill_(1.0)
    sample = [clip_set.clip(i) for clip_set in clip_sets for i in range(min(clips, len(clip_set)))]
    latents = [vae.encode(video[None].to(vae.latent_std.device)).float().flatten() for video in sample]
    vae.latent_std.copy_(torch.cat(latents).std())


@torch.no_grad()
def encode_clips(vae: MiniVAE, clip_set: ClipSet, folder: Path) -> Tensor:
    """Latents [clips, C, 1 + n, h, w] of all clips; kept in `folder`, made anew when codec or clips changed."""
    config, frames = clip_set.config, 1 + (clip_set.config.frames - 1) // 4
    grid = config.size // vae.spatial_factor
    shape = (vae.latent_channels, frames, grid, grid)
    card = {"source": fingerprint(config.card(), vae)}
    rows = Rows(folder, f"{config.name}.latents", card, config.clips, {"values": ("float32", shape)})
    if not rows.complete:
        missing = set(rows.begin())
        with progress(
            config.clips, f"encode the clips of {config.name}", "clip", done=config.clips - len(missing)
        ) as bar:
            for batch in torch.arange(config.clips).split(8):  # always the same batches, for the same bits
                again = [int(clip) for clip in batch if int(clip) in missing]
                if again:
                    video = torch.stack([clip_set.clip(int(clip)) for clip in batch])
                    latents = vae.encode(video.to(vae.latent_std.device)).cpu()
                    for clip in again:
                        rows.write(clip, values=latents[clip - int(batch[0])].numpy())
                    bar.update(len(again))
        rows.finish()
    return torch.from_numpy(np.load(rows.path("values.npy")))


def _note_start(folder: Path, start: str) -> None:
    """Keep the start of a run in `folder`/start.txt; refuse to resume a run that started from something else."""
    note = folder / "start.txt"
    if (folder / CHECKPOINT).exists():
        began = note.read_text() if note.exists() else "random weights"
        require(began == start, "out", f"a run of stage 1 that started from {start} ({folder})", f"one from {began}")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(note, start)


def last_stage(out: Path, before: str | None = None) -> str:
    """The last stage of the generator that has finished in `out`, of those before `before`; "diffusion" if none has."""
    stages = GENERATOR_STAGES[: GENERATOR_STAGES.index(before)] if before else GENERATOR_STAGES
    finished = [stage for stage in stages if result_path(out, stage).exists()]
    return finished[-1] if finished else "diffusion"
