# SPDX-License-Identifier: Apache-2.0
"""The option `--sheet`: some frames of a video in one picture, in the format of the file's ending."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from aapt_fast.media.destination import Destination
from aapt_fast.training.data import to_float
from aapt_fast.training.metrics import psnr
from aapt_fast.training.sheet import save_sheet
from aapt_fast.worlds.world import World

COLUMNS = 12


class ContactSheet:
    """Takes a video of `frames` frames as it comes; keeps the shown ones: drawn controls, truth if known, and video."""

    def __init__(self, path: Path, frames: int, world: World) -> None:
        self._destination, self._world, self._seen = Destination(path), world, 0
        self._shown = torch.linspace(0, frames - 1, min(COLUMNS, frames), dtype=torch.float64).long()
        self._rows: dict[str, list[Tensor]] = {"controls": [], "truth": [], "video": []}
        self._psnr: list[float] = []

    def add(self, video: Tensor, controls: Tensor, truth: Tensor | None) -> None:
        """Add frames: video uint8 [n, H, W, 3], controls [n, ...], and the true video [n, 3, H, W] in 0..1 if known."""
        picks = self._shown[(self._shown >= self._seen) & (self._shown < self._seen + len(video))] - self._seen
        self._seen += len(video)
        generated = to_float(video).transpose(0, 1)
        self._rows["controls"].append(self._world.draw_controls(controls[picks], video.shape[1]) * 2 - 1)
        self._rows["video"].append(generated[picks])
        if truth is not None:
            truth = truth * 2 - 1
            self._rows["truth"].append(truth[picks])
            self._psnr += psnr(generated.transpose(0, 1), truth.transpose(0, 1)).tolist()

    def write(self) -> dict[str, object]:
        """Save the sheet; returns its entries of a report, with a known truth also the PSNR of the video."""
        path = self._destination.name()
        self._save(path)
        extra: dict[str, object] = {"sheet": str(path)}
        if self._psnr:
            extra["psnr_to_truth"] = round(sum(self._psnr) / len(self._psnr), 2)
        return extra

    def write_unfinished(self) -> Path | None:
        """Save what a stopped video has shown, beside an existing file; returns its path, None without frames."""
        if not self._rows["video"]:
            return None
        path = self._destination.name_if_stopped()
        self._save(path)
        return path

    def _save(self, path: Path) -> None:
        save_sheet(path, [torch.cat(row) for row in self._rows.values() if row], zoom=2)
