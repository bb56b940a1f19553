# SPDX-License-Identifier: Apache-2.0
"""Clips of a world on disk: rendered once in parallel, then read by memory map."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aapt_fast.errors import require
from aapt_fast.limits import require_memory
from aapt_fast.progress import progress
from aapt_fast.training.rows import Rows
from aapt_fast.training.workers import begin_worker
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
    """All clips of a small set, as `stack_clips` gives them. Raises ValueError if they do not fit into the memory."""
    needed = 12 * config.clips * config.frames * config.size**2  # float32
    require_memory(f"clips, frames and size of {config.name}", needed)
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
        self.controls = torch.from_numpy(np.load(folder / f"{config.name}.points.npy"))

    def __len__(self) -> int:
        return self.config.clips

    def clip(self, index: int) -> Tensor:
        """Video of one clip, float32 [3, T, H, W] in -1..1."""
        return to_float(torch.from_numpy(np.array(self.video[index])))


def to_float(video: Tensor) -> Tensor:
    """uint8 [..., T, H, W, 3] -> float32 [..., 3, T, H, W] in -1..1."""
    return video.movedim(-1, -4).float() / 127.5 - 1


def clip_rows(folder: Path, config: ClipSetConfig) -> Rows:
    """The set as rows in `folder`: `video` uint8 [clips, T, H, W, 3], and `points` float32 [clips, T, ...].

    The controls are called as they were when all of them were points, so that older sets stay valid.
    """
    controls = config.world.clip(config.seed, 0, 1, config.size).controls.shape[1:]
    arrays = {
        "video": ("uint8", (config.frames, config.size, config.size, 3)),
        "points": ("float32", (config.frames, *controls)),
    }
    return Rows(folder, config.name, config.card(), config.clips, arrays)


def render_clips(folder: Path, config: ClipSetConfig, workers: int = 0) -> ClipSet:
    """Render the clips of the set that are not in `folder` yet; when stopped, all that are finished stay there.

    Raises ValueError naming the set if the disk has no room for it.
    """
    rows = clip_rows(folder, config)
    if not rows.complete:
        missing = rows.begin()
        with progress(
            config.clips, f"render the clips of {config.name}", "clip", done=config.clips - len(missing)
        ) as bar:
            _render_all(rows, config, missing, workers or os.cpu_count() or 1, bar.update)
        rows.finish()
    return ClipSet(folder, config)


def _render_all(
    rows: Rows, config: ClipSetConfig, missing: list[int], workers: int, rendered: Callable[[], object]
) -> None:
    spawn = multiprocessing.get_context("spawn")
    # an executor notices a killed worker, which multiprocessing.Pool waits for forever
    with ProcessPoolExecutor(workers, spawn, initializer=begin_worker) as pool:
        try:
            for _ in pool.map(_render_one, [(rows, config, clip) for clip in missing]):
                rendered()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _render_one(job: tuple[Rows, ClipSetConfig, int]) -> None:
    """Put one clip into the set."""
    rows, config, number = job
    clip = make_clip(config, number)
    rows.write(number, video=clip.video.numpy(), points=clip.controls.numpy())
