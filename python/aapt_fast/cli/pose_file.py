# SPDX-License-Identifier: Apache-2.0
"""The option `--controls`: the pose of every video frame, in a .npy or .json file. No torch, as for all checks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from aapt_fast.cli.absent import require_there
from aapt_fast.cli.choices import FRAMES_PER_STEP, JOINTS
from aapt_fast.errors import require
from aapt_fast.streaming.fractions import require_fractions

ENDINGS = (".npy", ".json")
EXPECTED = f"a .npy or .json file with finite numbers of shape [frames, {JOINTS}, 3]"
ARRAY, ARCHIVE = b"\x93NUMPY", b"PK"
"""The first bytes of what numpy.save and numpy.savez write."""


def read_poses(path: Path) -> np.ndarray:
    """Image points float32 [frames, joints, 3] of a file: x and y as fractions of the frame, and depth in metres.

    Raises ValueError for any other content, naming the file and what it holds.
    """
    require(path.suffix.lower() in ENDINGS, "--controls", EXPECTED, path)
    require_there("--controls", EXPECTED, path)
    require(not path.is_dir(), "--controls", EXPECTED, f"the folder {path}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"--controls: expected {EXPECTED}, got {path}, unreadable: {error.strerror}") from error
    values = _array(path, data) if path.suffix.lower() == ".npy" else _lists(path, data)
    shape = list(values.shape)
    require(values.dtype.kind in "fiu", "--controls", EXPECTED, f"{path} with values of type {values.dtype}")
    fits = values.ndim == 3 and values.size > 0 and shape[2] == 3
    require(fits, "--controls", EXPECTED, f"{path} with shape {shape}")
    with np.errstate(over="ignore"):
        points: np.ndarray = values.astype(np.float32)
    require(bool(np.isfinite(points).all()), "--controls", EXPECTED, f"{path} with nan or inf")
    return points


def require_poses_of(joints: int | None, poses: np.ndarray) -> None:
    """Raise ValueError unless a model of so many joints takes the poses [frames, joints, 3]; None: it takes no poses.

    Every step is checked as the session will check it.
    """
    require(joints is not None, "--controls", "left out: no poses drive this model", f"{len(poses)} poses")
    expected = f"shape [frames, {joints}, 3]"
    require(poses.shape[1] == joints, "--controls", expected, f"shape {list(poses.shape)}")
    require_fractions("--controls", poses[..., :2])
    for first in range(0, len(poses), FRAMES_PER_STEP):
        step = np.arange(first, first + FRAMES_PER_STEP).clip(max=len(poses) - 1)  # the last pose is held
        require_fractions(f"--controls, from video frame {first} on", poses[step, :, :2])


def _array(path: Path, data: bytes) -> np.ndarray:
    """The array that numpy.save wrote."""
    require(not data.startswith(ARCHIVE), "--controls", EXPECTED, f"{path}, an archive of several arrays")
    require(data.startswith(ARRAY), "--controls", EXPECTED, f"{path}, which is not written by numpy.save")
    try:
        values: np.ndarray = np.load(path, allow_pickle=False)
    except (ValueError, TypeError, EOFError, OSError, SyntaxError) as error:
        got = f"{path}, which is damaged or holds Python objects"
        raise ValueError(f"--controls: expected {EXPECTED}, got {got}") from error
    return values


def _lists(path: Path, data: bytes) -> np.ndarray:
    """The nested lists of JSON as an array."""
    try:
        content = json.loads(data)
    except json.JSONDecodeError as error:
        got = f"{path}, which is no JSON from line {error.lineno}, column {error.colno} on"
        raise ValueError(f"--controls: expected {EXPECTED}, got {got}") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"--controls: expected {EXPECTED}, got {path}, which is no JSON") from error
    require(isinstance(content, list), "--controls", EXPECTED, f"{path} with a {type(content).__name__}, not a list")
    try:
        values = np.array(content)
    except (ValueError, OverflowError) as error:
        got = f"{path}, whose lists differ in length or hold other things than numbers"
        raise ValueError(f"--controls: expected {EXPECTED}, got {got}") from error
    require(values.dtype != object, "--controls", EXPECTED, f"{path}, whose lists hold other things than numbers")
    return values
