# SPDX-License-Identifier: Apache-2.0
"""The option `--sheet`: some frames of a video in one picture, in the format of the file's ending."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from aapt_fast.media.destination import Destination
from aapt_fast.training.data import to_float
from aapt_fast.training.metrics import psnr
from aapt_fast.training.sheet import save_sheet
from aapt_fast.worlds.world import World

COLUMNS = 12
MOST_KEPT = 8 * COLUMNS
"""Frames of a video that are in memory at most, whatever its length."""


class ContactSheet:
    """Takes a video as it comes, and shows frames from its first to its last: drawn controls, truth if known, video.

    The end of a video is not known before it is there, as a signal may stop it. So every n-th frame is kept, and n
    doubles whenever they become too many.
    """

    def __init__(self, path: Path, world: World) -> None:
        self._destination, self._world = Destination(path), world
        self._seen, self._stride = 0, 1
        self._kept: list[_Frame] = []  # frames 0, stride, 2 stride, ...
        self._last: _Frame | None = None
        self._psnr = 0.0  # sum over all frames with a truth

    def add(self, video: Tensor, controls: Tensor, truth: Tensor | None) -> None:
        """Add frames: video uint8 [n, H, W, 3], controls [n, ...], and the true video [n, 3, H, W] in 0..1 if known."""
        for index in range(len(video)):
            frame = _Frame(video[index], controls[index], None if truth is None else truth[index])
            if self._seen % self._stride == 0:
                self._kept.append(frame.copy())
            if len(self._kept) > MOST_KEPT:
                self._kept, self._stride = self._kept[::2], 2 * self._stride
            self._seen += 1
        self._last = frame.copy()
        if truth is not None:
            self._psnr += float(psnr(to_float(video), truth.transpose(0, 1) * 2 - 1).sum())

    def write(self) -> dict[str, object]:
        """Save the sheet; returns its entries of a report, with a known truth also the PSNR of the video."""
        path = self._destination.name()
        self._save(path)
        extra: dict[str, object] = {"sheet": str(path)}
        if self._last is not None and self._last.truth is not None:
            extra["psnr_to_truth"] = round(self._psnr / self._seen, 2)
        return extra

    def write_unfinished(self) -> Path | None:
        """Save what a stopped video has shown, beside an existing file; returns its path, None without frames."""
        if self._last is None:
            return None
        path = self._destination.name_if_stopped()
        self._save(path)
        return path

    def _save(self, path: Path) -> None:
        frames = self._shown()
        size = frames[0].video.shape[0]
        rows = [self._world.draw_controls(torch.stack([frame.control for frame in frames]), size) * 2 - 1]
        truths = [frame.truth for frame in frames if frame.truth is not None]
        if truths:
            rows.append(torch.stack(truths) * 2 - 1)
        rows.append(to_float(torch.stack([frame.video for frame in frames])).transpose(0, 1))
        save_sheet(path, rows, zoom=2)

    def _shown(self) -> list[_Frame]:
        """Frames at equal distances, up to `COLUMNS` of them, from the first to the last."""
        assert self._last is not None
        numbers = torch.linspace(0, self._seen - 1, min(COLUMNS, self._seen), dtype=torch.float64).long().tolist()
        return [*(self._kept[number // self._stride] for number in numbers[:-1]), self._last]


class _Frame(NamedTuple):
    """One column of a sheet: video uint8 [H, W, 3], control [...], and the true frame [3, H, W] in 0..1 if known."""

    video: Tensor
    control: Tensor
    truth: Tensor | None

    def copy(self) -> _Frame:
        """The frame without the rest of the step that it is a part of."""
        return _Frame(self.video.clone(), self.control.clone(), None if self.truth is None else self.truth.clone())
