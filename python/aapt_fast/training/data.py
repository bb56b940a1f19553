# SPDX-License-Identifier: Apache-2.0
"""Clips of the `person` world on disk: rendered once in parallel, then read by memory map."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from aapt_fast.errors import require
from aapt_fast.worlds.capsules import Capsules
from aapt_fast.worlds.chance import Chance
from aapt_fast.worlds.company import Company, gather
from aapt_fast.worlds.motions import random_motion
from aapt_fast.worlds.person import make_identity, render
from aapt_fast.worlds.skeleton import JOINTS, Camera, forward_kinematics

GOLDEN_RATIO = 0.6180339887498949


@dataclass(frozen=True)
class ClipSetConfig:
    """What to render. `identities` = 0 gives every clip a person and room of its own; `company` is there by chance.

    `fade_in` is the share of clips that begin as live control does: in a pose which the body leaves at once for
    another motion. All others begin in the middle of a motion.
    """

    name: str
    clips: int
    frames: int = 61  # video frames: 1 + 4 n
    size: int = 96
    identities: int = 0
    seed: int = 0
    company: Company | None = None
    fade_in: float = 0.0

    def __post_init__(self) -> None:
        require(self.clips > 0, "clips", "at least 1", self.clips)
        require(self.frames % 4 == 1 and self.frames > 4, "frames", "1 + 4 n with n >= 1", self.frames)
        require(0 <= self.fade_in <= 1, "fade_in", "a share, 0..1", self.fade_in)

    def identity_seed(self, clip: int) -> int:
        """The person and room of clip number `clip`; gallery identities are 0, 1, 2, ..."""
        return clip % self.identities if self.identities else 1_000_000 * (self.seed + 1) + clip

    def motion_seed(self, clip: int) -> int:
        """The motion of clip number `clip`; sets with another seed share no motion."""
        return 1_000_000_007 * (self.seed + 1) + clip

    def company_seed(self, clip: int) -> int:
        """What chance does in clip number `clip`; sets with another seed share nothing."""
        return self.motion_seed(clip)

    def motion(self, clip: int) -> Tensor:
        """Pose angles [frames, 17] of the person in clip number `clip`."""
        seed = self.motion_seed(clip)
        fades_in = clip * GOLDEN_RATIO % 1 < self.fade_in  # spreads evenly over clips and over identities
        start = random_motion(1, seed + 500_000_003)[0] if fades_in else None
        return random_motion(self.frames, seed, start)


def make_clip(config: ClipSetConfig, clip: int) -> tuple[Tensor, Tensor]:
    """Video uint8 [T, H, W, 3] and image points float32 [T, 19, 3] of one clip, from its number alone."""
    return film(config, clip, config.motion(clip))


def film(config: ClipSetConfig, clip: int, angles: Tensor, future: int = 0, parting: int = 1) -> tuple[Tensor, Tensor]:
    """Video and points, as `make_clip`, of clip number `clip` if its person moved by the poses `angles` [T, 17].

    `future` and `parting` choose what chance does; see `worlds.chance`. Without company they change nothing.
    """
    joints, identity = forward_kinematics(angles), make_identity(config.identity_seed(clip))
    company: list[Capsules] = []
    if config.company is not None:
        chance = Chance(config.company_seed(clip), future, parting)
        company = gather(config.company, joints, identity, chance)
    video = render(joints, identity, config.size, company=company)
    return (video * 255 + 0.5).byte().permute(0, 2, 3, 1), Camera().project(joints)


def futures(config: ClipSetConfig, clip: int, count: int, parting: int = 1) -> Tensor:
    """Video uint8 [count, T, H, W, 3] of what could follow the first `parting` video frames of clip number `clip`.

    Person, room and motion are the same in all of them; only chance differs. Number 0 is the clip itself. Raises
    ValueError for a set without company, which has one future only.
    """
    require(config.company is not None, "config.company", "company, without which there is one future", None)
    require(count > 0, "count", "at least 1", count)
    angles = config.motion(clip)
    return torch.stack([film(config, clip, angles, future, parting)[0] for future in range(count)])


class ClipSet:
    """Rendered clips: `video` uint8 [clips, T, H, W, 3] and `points` float32 [clips, T, 19, 3], memory-mapped."""

    def __init__(self, folder: Path, config: ClipSetConfig) -> None:
        self.config = config
        self.video = np.load(folder / f"{config.name}.video.npy", mmap_mode="r")
        self.points = torch.from_numpy(np.load(folder / f"{config.name}.points.npy"))

    def __len__(self) -> int:
        return self.config.clips

    def clip(self, index: int) -> Tensor:
        """Video of one clip, float32 [3, T, H, W] in -1..1."""
        return to_float(torch.from_numpy(np.array(self.video[index])))


def to_float(video: Tensor) -> Tensor:
    """uint8 [..., T, H, W, 3] -> float32 [..., 3, T, H, W] in -1..1."""
    return video.movedim(-1, -4).float() / 127.5 - 1


def render_clips(folder: Path, config: ClipSetConfig, workers: int = 0) -> ClipSet:
    """Render the set into `folder` unless it is there already; a broken-off rendering leaves nothing valid behind."""
    folder.mkdir(parents=True, exist_ok=True)
    card = folder / f"{config.name}.json"
    if not card.exists() or json.loads(card.read_text()) != _card(config):
        card.unlink(missing_ok=True)
        _render_all(folder, config, workers or os.cpu_count() or 1)
        partial = card.with_name(card.name + ".partial")
        partial.write_text(json.dumps(_card(config)))
        os.replace(partial, card)
    return ClipSet(folder, config)


def _card(config: ClipSetConfig) -> dict[str, Any]:
    """What was rendered; sets without company or fades have the card that they had before there were any."""
    return {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if value is not None and (name, value) != ("fade_in", 0.0)
    }


def _render_all(folder: Path, config: ClipSetConfig, workers: int) -> None:
    video_path = folder / f"{config.name}.video.npy"
    shape = (config.clips, config.frames, config.size, config.size, 3)
    np.lib.format.open_memmap(video_path, mode="w+", dtype=np.uint8, shape=shape).flush()
    points = np.empty((config.clips, config.frames, len(JOINTS), 3), np.float32)
    jobs = [(video_path, config, clip) for clip in range(config.clips)]
    spawn = multiprocessing.get_context("spawn")
    # an executor notices a killed worker, which multiprocessing.Pool waits for forever
    with ProcessPoolExecutor(workers, spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        progress = tqdm(pool.map(_render_one, jobs, chunksize=4), total=len(jobs), desc=f"render {config.name}")
        for clip, clip_points in enumerate(progress):
            points[clip] = clip_points
    np.save(folder / f"{config.name}.points.npy", points)


def _render_one(job: tuple[Path, ClipSetConfig, int]) -> np.ndarray:
    video_path, config, clip = job
    video, points = make_clip(config, clip)
    np.load(video_path, mmap_mode="r+")[clip] = video.numpy()
    return points.numpy()
