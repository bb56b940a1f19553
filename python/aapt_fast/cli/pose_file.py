# SPDX-License-Identifier: Apache-2.0
"""The option `--controls`: the pose of every video frame, in a .npy or .json file, checked as a whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aapt_fast.errors import require
from aapt_fast.streaming.controls import require_fractions

ENDINGS = (".npy", ".json")
UNREADABLE = (ValueError, TypeError, EOFError, OSError, OverflowError, RecursionError)  # numpy's and json's
SHAPE = "numbers [frames, joints, 3]"


def read_poses(path: Path) -> Tensor:
    """Image points float32 [frames, joints, 3] of a file. Raises ValueError for any other content."""
    require(path.suffix.lower() in ENDINGS, "--controls", "a .npy or .json file", path.name or path)
    try:
        values = np.load(path) if path.suffix.lower() == ".npy" else np.array(json.loads(path.read_text("utf-8")))
    except UNREADABLE as error:
        why = (str(error).splitlines() or ["nothing"])[0]
        raise ValueError(f"--controls: expected {SHAPE} in {path}, got {why}") from error
    require(isinstance(values, np.ndarray), "--controls", f"one array in {path}", "an archive of several")
    shape = list(values.shape)
    require(values.size > 0, "--controls", f"{SHAPE} in {path}", f"none: shape {shape}")
    require(values.dtype.kind in "fiu", "--controls", f"real numbers in {path}", values.dtype)
    require(values.ndim == 3 and shape[2] == 3, "--controls", "shape [frames, joints, 3]", shape)
    with np.errstate(over="ignore"):
        points = torch.from_numpy(values.astype(np.float32))
    require(bool(points.isfinite().all()), "--controls", "finite values", "nan or inf")
    require_fractions("--controls", points[..., :2])
    return points


class FilePlayer:
    """Plays the `poses` [frames, joints, 3] of a file; the last is held."""

    def __init__(self, poses: Tensor) -> None:
        self._poses, self._frame = poses, 0

    def next(self, frames: int) -> Tensor:
        """Poses [frames, joints, 3] of the next video frames."""
        picks = torch.arange(self._frame, self._frame + frames).clamp_max(len(self._poses) - 1)
        self._frame += frames
        return self._poses[picks]

    def truth(self, size: int) -> None:
        """None: a file of poses has no person and no room."""
