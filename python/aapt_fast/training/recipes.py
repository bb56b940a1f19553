# SPDX-License-Identifier: Apache-2.0
"""Recipes: the data and the settings of all stages that make a model. training/stages.py runs them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from aapt_fast.errors import require
from aapt_fast.models.aapt.convert import bidirectional
from aapt_fast.models.aapt.presets import MINI_PERSON, MINI_ROOMS
from aapt_fast.models.vae.mini import LARGE as LARGE_VAE
from aapt_fast.training.adversarial import AdversarialConfig
from aapt_fast.training.camera_network import CameraNetworkConfig, camera_reader, describe_camera_kept
from aapt_fast.training.codec import CodecConfig
from aapt_fast.training.consistency import ConsistencyConfig
from aapt_fast.training.data import ClipSetConfig
from aapt_fast.training.diffusion import DiffusionConfig
from aapt_fast.training.evaluate import ControlReader
from aapt_fast.training.own_folder import TRIAL
from aapt_fast.training.pose_network import PoseNetworkConfig, describe_kept, pose_reader
from aapt_fast.training.pretrain import PretrainConfig
from aapt_fast.worlds.person.world import PersonWorld
from aapt_fast.worlds.rooms.world import RoomsWorld


@dataclass(frozen=True)
class Recipe:
    """Clips and settings of one model. `name` is that of the exported model.

    All sets are of one world but those of `also_coded`, which are there so that one codec serves the models of several.
    """

    name: str
    strangers: ClipSetConfig | None  # every clip has a scene of its own; None: the gallery is all there is
    gallery: ClipSetConfig  # scenes that the generator is to know best
    held_out_strangers: ClipSetConfig | None  # scenes for the evaluations during training that no clip has shown
    held_out_gallery: ClipSetConfig
    first_frames: ClipSetConfig  # the gallery that comes with the model
    held_out: tuple[ClipSetConfig, ...]  # for the final evaluations; the first is the gallery's
    codec: CodecConfig | None  # None: the codec of `vae`, else that of `start`, as it is
    pretrain: PretrainConfig | None  # None: stage 1 begins from `start`
    diffusion: DiffusionConfig
    consistency: ConsistencyConfig
    adversarial: AdversarialConfig
    also_coded: tuple[tuple[ClipSetConfig, ClipSetConfig], ...] = ()  # only for the codec: to train and to evaluate it
    start: str | None = None  # a bundled model or a file, whose weights the codec and stage 1 start from
    vae: str | None = None  # a bundled codec, a model or a file with one
    minutes: Mapping[str, float] = field(default_factory=dict)  # by stage and "render", of the run that was `measured`
    measured: str = ""

    @property
    def trial(self) -> bool:
        """True for a recipe of `trial_of`, whose model is good for nothing."""
        return self.name.endswith(TRIAL)

    @property
    def training_sets(self) -> tuple[ClipSetConfig, ...]:
        """The sets that all stages train on."""
        return (self.gallery,) if self.strangers is None else (self.strangers, self.gallery)

    @property
    def codec_sets(self) -> tuple[ClipSetConfig, ...]:
        """The sets that the codec trains on; those of the training where it is taken from the start."""
        return self.training_sets + (tuple(training for training, _ in self.also_coded) if self.codec else ())

    def __post_init__(self) -> None:
        nothing = self.start is None
        without = self.codec is None and self.vae is None
        require(not (nothing and without), "start", "a model, as the recipe trains no codec", None)
        require(self.codec is None or self.vae is None, "codec", f"None, as it is that of {self.vae}", "settings")
        require(nothing or self.vae is None, "vae", f"None, as the codec is that of {self.start}", self.vae)
        require(nothing or self.pretrain is None, "pretrain", f"None, as stage 1 begins from {self.start}", "settings")


STRANGERS, GALLERY = PersonWorld(), PersonWorld(identities=16)

STRANGERS_CLIPS = ClipSetConfig("open", dataclasses.replace(STRANGERS, fade_in=0.3), clips=640, seed=1)
GALLERY_CLIPS = ClipSetConfig("gallery", dataclasses.replace(GALLERY, fade_in=0.3), clips=960, seed=2)
HELD_OUT_STRANGERS = ClipSetConfig("held-out-strangers", STRANGERS, clips=8, seed=3)
HELD_OUT_GALLERY = ClipSetConfig("held-out-gallery", GALLERY, clips=8, seed=5)
FIRST_FRAMES = ClipSetConfig("first-frames", GALLERY, clips=GALLERY.identities, frames=5, seed=6)
HELD_OUT = ClipSetConfig("held-out", GALLERY, clips=16, frames=361, seed=4)
HELD_OUT_UNSEEN = ClipSetConfig("held-out-unseen", STRANGERS, clips=16, frames=121, seed=9)

PERSON = Recipe(
    name="mini-person",
    strangers=STRANGERS_CLIPS,
    gallery=GALLERY_CLIPS,
    held_out_strangers=HELD_OUT_STRANGERS,
    held_out_gallery=HELD_OUT_GALLERY,
    first_frames=FIRST_FRAMES,
    held_out=(HELD_OUT, HELD_OUT_UNSEEN),
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
    minutes=dict(render=12, codec=47, pretrain=7, diffusion=72, consistency=6, adversarial=23, evaluate=48),
    measured="on one thread of an AMD EPYC (docs/results/stages.md)",
)

# The gallery's model, trained further on strangers. No recipe trains on the persons of its first frames.
ANYONE = dataclasses.replace(
    PERSON,
    name="mini-anyone",
    first_frames=ClipSetConfig("first-frames-strangers", STRANGERS, clips=8, frames=5, seed=11),
    start="mini-person",
    codec=None,
    pretrain=None,
    diffusion=dataclasses.replace(PERSON.diffusion, steps=2400, matrix_rate=0.01, rate=7e-4),
    minutes=dict(render=12, diffusion=41, consistency=6, reconstruction=16, adversarial=20),
)

# Videos of 192 x 192 pixels. The recipe of the rooms trains one codec, 16 pixels per latent cell, for both worlds.
LARGE = 192
LARGE_CODEC = CodecConfig(model=LARGE_VAE, steps=4000, batch=4, crop=96, evaluate_every=500)
LARGE_PERSON = ClipSetConfig("person-large", STRANGERS, clips=480, frames=33, size=LARGE, seed=1)
HELD_OUT_LARGE_PERSON = dataclasses.replace(LARGE_PERSON, name="held-out-large-person", clips=6, seed=3)
HELD_OUT_ROOMS = ClipSetConfig("held-out-rooms", RoomsWorld(), clips=6, frames=33, size=LARGE, seed=23)
KNOWN_ROOMS = RoomsWorld(houses=16)

# Chance decides: stage 1 is trained at all levels, as on the coin, and stage 3 is refinement, which keeps the choices.
ROOMS = Recipe(
    name="mini-rooms",
    strangers=ClipSetConfig("rooms-open", RoomsWorld(), clips=800, size=LARGE, seed=21),
    gallery=ClipSetConfig("rooms-gallery", KNOWN_ROOMS, clips=400, size=LARGE, seed=22),
    held_out_strangers=HELD_OUT_ROOMS,
    held_out_gallery=dataclasses.replace(HELD_OUT_ROOMS, name="held-out-known-rooms", world=KNOWN_ROOMS, seed=24),
    first_frames=ClipSetConfig("first-frames-rooms", KNOWN_ROOMS, clips=16, frames=5, size=LARGE, seed=26),
    held_out=(
        ClipSetConfig("rooms-held-out", KNOWN_ROOMS, clips=16, frames=241, size=LARGE, seed=25),
        ClipSetConfig("rooms-held-out-unseen", RoomsWorld(), clips=16, frames=121, size=LARGE, seed=27),
    ),
    codec=LARGE_CODEC,
    also_coded=((LARGE_PERSON, HELD_OUT_LARGE_PERSON),),
    pretrain=None,
    diffusion=DiffusionConfig(model=MINI_ROOMS, steps=5000, clip_frames=12, share_at_one=0.15, recycled_noise=0.1),
    consistency=ConsistencyConfig(
        model=MINI_ROOMS, steps=400, clip_frames=12, recycled_noise=0.1, matrix_rate=3e-3, rate=3e-4
    ),
    adversarial=AdversarialConfig(
        model=MINI_ROOMS,
        steps=400,
        segment_frames=5,
        segments=2,
        reconstruction=0.0,
        refinement=1.0,
        matrix_rate=0.003,
        rate=2e-4,
        average_decay=0.99,
        evaluate_every=100,
    ),
)

RECIPES = {"person": PERSON, "anyone": ANYONE, "rooms": ROOMS}

HELD_OUT_SETS = dict(zip(("gallery", "strangers", "rooms", "new-rooms"), PERSON.held_out + ROOMS.held_out, strict=True))
"""Sets of `aapt-fast evaluate --held-out`."""


def _read_poses(size: int, folder: Path) -> ControlReader:
    return pose_reader(PoseNetworkConfig(size=size), folder)


def _read_camera(size: int, folder: Path) -> ControlReader:
    return camera_reader(CameraNetworkConfig(size=size), folder)


READERS: dict[str, Callable[[int, Path], ControlReader]] = {
    "person": _read_poses,
    "rooms": _read_camera,
    "rooms-8": _read_camera,
}
"""Control readers by the name of their world; each takes the size in pixels and the folder that keeps the network."""


def control_reader(config: ClipSetConfig, folder: Path) -> ControlReader | None:
    """The reader of the controls in a set's videos, kept in `folder`; None where its world has none."""
    return READERS[config.world.name](config.size, folder) if config.world.name in READERS else None


def describe_reader(config: ClipSetConfig, folder: Path) -> str:
    """The parts of the set's control reader that are in `folder`, in words."""
    if config.world.name not in READERS:
        return "this world needs no pose network"
    if config.world.name == "person":
        return describe_kept(PoseNetworkConfig(size=config.size), folder)
    return describe_camera_kept(CameraNetworkConfig(size=config.size), folder)
