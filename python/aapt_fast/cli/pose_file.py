# SPDX-License-Identifier: Apache-2.0
"""What `--controls` names: the pose of every video frame, in a .npy or .json file, checked as a whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aapt_fast.errors import require

ENDINGS = (".npy", ".json")
UNREADABLE = (ValueError, TypeError, EOFError, OSError, OverflowError, RecursionError)  # numpy's and json's
SHAPE = "numbers [frames, joints, 3]"


def read_poses(path: Path) -> Tensor:
    """Image points float32 [frames, joints, 3] of a file. Raises ValueError for anything else that is in it."""
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
    _require_fractions(points[..., :2])
    return points


def _require_fractions(places: Tensor) -> None:
    """Refuse x and y that are hardly fractions of the frame: pixels, say."""
    outside = (places < -1) | (places > 2)
    expected = "x and y as fractions of width and height, mostly 0..1"
    got = f"values from {places.min():g} to {places.max():g} (pixels?)"
    require(float(outside.float().mean()) <= 0.5, "--controls", expected, got)
