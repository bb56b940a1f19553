# SPDX-License-Identifier: Apache-2.0
"""Clips of a world on disk: rendered once in parallel, then read by memory map."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from aapt_fast.errors import require
from aapt_fast.models.files.atomic import replacing
from aapt_fast.worlds.world import Clip, World


@dataclass(frozen=True)
class ClipSetConfig:
    """A set of clips of one world, all of them named by `seed` and their number."""

    name: str
    world: World
    clips: int
    frames: int = 61  # video frames: 1 + 4 n
    size: int = 96
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.clips > 0, "clips", "at least 1", self.clips)
        require(self.frames % 4 == 1 and self.frames > 4, "frames", "1 + 4 n with n >= 1", self.frames)

    def scene(self, clip: int) -> int:
        """The scene of clip number `clip`; see `World.scene`."""
        return self.world.scene(self.seed, clip)

    def card(self) -> dict[str, Any]:
        """JSON values that tell this set from any other."""
        numbers = {"name": self.name, "clips": self.clips, "frames": self.frames, "size": self.size, "seed": self.seed}
        return numbers | self.world.settings()


def make_clip(config: ClipSetConfig, clip: int, future: int = 0) -> Clip:
    """Render one clip from its number alone; see `World.clip`."""
    return config.world.clip(config.seed, clip, config.frames, config.size, future)


def stack_clips(clips: Sequence[Clip]) -> tuple[Tensor, Tensor]:
    """Video float32 [B, 3, T, H, W] in -1..1 and controls [B, T, ...] of clips of one length."""
    return torch.stack([to_float(clip.video) for clip in clips]), torch.stack([clip.controls for clip in clips])


def held_out_clips(config: ClipSetConfig) -> tuple[Tensor, Tensor]:
    """All clips of a small set, as `stack_clips` gives them."""
    return stack_clips([make_clip(config, clip) for clip in range(config.clips)])


def futures(config: ClipSetConfig, clip: int, count: int) -> Tensor:
    """Video uint8 [count, T, H, W, 3] of what could follow the first video frame of a clip; number 0 is the clip.

    Raises ValueError for a world without chance, which has one future only.
    """
    require(config.world.has_chance, "config.world", "one in which chance has a part", config.world)
    require(count > 0, "count", "at least 1", count)
    return torch.stack([make_clip(config, clip, future).video for future in range(count)])


class ClipSet:
    """Rendered clips: `video` uint8 [clips, T, H, W, 3], memory-mapped, and `controls` float32 [clips, T, ...]."""

    def __init__(self, folder: Path, config: ClipSetConfig) -> None:
        self.config = config
        self.video = np.load(folder / f"{config.name}.video.npy", mmap_mode="r")
        self.controls = torch.from_numpy(np.load(_controls_path(folder, config)))

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
    if not card.exists() or json.loads(card.read_text()) != config.card():
        card.unlink(missing_ok=True)
        _render_all(folder, config, workers or os.cpu_count() or 1)
        with replacing(card) as partial:
            partial.write_text(json.dumps(config.card()))
    return ClipSet(folder, config)


def _controls_path(folder: Path, config: ClipSetConfig) -> Path:
    """The file of the controls, called as it was when all controls were points, so that older sets stay valid."""
    return folder / f"{config.name}.points.npy"


def _render_all(folder: Path, config: ClipSetConfig, workers: int) -> None:
    video_path = folder / f"{config.name}.video.npy"
    shape = (config.clips, config.frames, config.size, config.size, 3)
    np.lib.format.open_memmap(video_path, mode="w+", dtype=np.uint8, shape=shape).flush()
    jobs = [(video_path, config, clip) for clip in range(config.clips)]
    spawn = multiprocessing.get_context("spawn")
    # an executor notices a killed worker, which multiprocessing.Pool waits for forever
    with ProcessPoolExecutor(workers, spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        progress = tqdm(pool.map(_render_one, jobs, chunksize=4), total=len(jobs), desc=f"render {config.name}")
        controls = np.stack(list(progress))
    np.save(_controls_path(folder, config), controls)


def _render_one(job: tuple[Path, ClipSetConfig, int]) -> np.ndarray:
    """Write the video of one clip into the set; return its controls [T, ...]."""
    video_path, config, number = job
    clip = make_clip(config, number)
    np.load(video_path, mmap_mode="r+")[number] = clip.video.numpy()
    return clip.controls.numpy()
