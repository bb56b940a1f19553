# SPDX-License-Identifier: Apache-2.0
"""Contact sheets: rows of video frames in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from aapt_fast.atomic import replacing


def save_comparison(path: Path, truth: Tensor, video: Tensor) -> None:
    """Write nine frames of up to four clips [n, 3, T, H, W] in -1..1, each true row above that of `video`."""
    picks = torch.linspace(0, truth.shape[2] - 1, 9).long()
    rows = [
        row[:, picks].transpose(0, 1) for pair in zip(truth[:4].cpu(), video[:4].cpu(), strict=True) for row in pair
    ]
    save_sheet(path, rows, zoom=2)


def save_sheet(path: Path, rows: Sequence[Tensor], zoom: int = 1) -> None:
    """Write `rows`, each video frames [n, 3, H, W] in -1..1, as one picture; shorter rows end in black.

    The ending of `path` gives the format: .png, .jpg, .jpeg or .webp.
    """
    strips = [torch.cat(list(row), dim=2) for row in rows]
    width = max(strip.shape[2] for strip in strips)
    picture = torch.cat([F.pad(strip, (0, width - strip.shape[2]), value=-1.0) for strip in strips], dim=1)
    pixels = ((picture.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    image = Image.fromarray(pixels)
    if zoom > 1:
        image = image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)
    with replacing(path) as partial:
        image.save(partial, quality=95)
