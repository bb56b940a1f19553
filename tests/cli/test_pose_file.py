# SPDX-License-Identifier: Apache-2.0
"""Poses from files: what can be read, and what is wrong with the rest in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from aapt_fast.cli.pose_file import read_poses

POSES = np.random.default_rng(0).random((6, 19, 3))
PIXELS = POSES * (640, 480, 1)
ONE_NAN = np.where(np.arange(POSES.size).reshape(POSES.shape) == 7, np.nan, POSES)


@pytest.mark.parametrize("name", ["x.npy", "x.NPY", "x.json"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
def test_real_numbers_of_any_kind(tmp_path: Path, name: str, dtype: type):
    path, poses = tmp_path / name, POSES.astype(dtype)
    if name == "x.json":
        path.write_text(json.dumps(poses.tolist()))
    else:
        with path.open("wb") as file:
            np.save(file, poses)
    assert torch.equal(read_poses(path), torch.from_numpy(poses.astype(np.float32)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (POSES + 1j, "--controls: expected real numbers in .*x.npy, got complex128"),
        (POSES > 0.5, "--controls: expected real numbers in .*x.npy, got bool"),
        (POSES.astype(str), "--controls: expected real numbers in .*x.npy, got <U"),
        (POSES.astype(object), r"--controls: expected numbers \[frames, joints, 3\] in .*, got Object arrays cannot"),
        (ONE_NAN, "--controls: expected finite values, got nan or inf"),
        (POSES * 1e300, "--controls: expected finite values, got nan or inf"),
        (POSES[0], r"--controls: expected shape \[frames, joints, 3\], got \[19, 3\]"),
        (POSES[..., :2], r"--controls: expected shape \[frames, joints, 3\], got \[6, 19, 2\]"),
        (POSES[:0], r"--controls: expected numbers \[frames, joints, 3\] in .*, got none: shape \[0, 19, 3\]"),
        (np.float32(1), r"--controls: expected shape \[frames, joints, 3\], got \[\]"),
        (PIXELS, r"fractions of width and height, mostly in 0..1, got values from \S+ to 63\S+ \(pixels\?\)"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_arrays_that_are_no_poses(tmp_path: Path, values: np.ndarray, message: str):
    np.save(tmp_path / "x.npy", values, allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        read_poses(tmp_path / "x.npy")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.npy", b""),
        ("x.json", b""),
        ("x.npy", b"words"),
        ("x.json", b"\xff"),
        ("x.json", b"[[[0, 1], [0, 1, 2]]]"),
        ("x.json", b"[" * 100_000),
        ("x.json", b"{}"),
        ("x.json", b"null"),
        ("x.json", b"[]"),
        ("x.json", b"[[[0, 1, null]]]"),
        ("x.json", b'[[["0", "1", "2"]]]'),
        ("x.json", b"[[[0, 1, NaN]]]"),
        ("x.json", b"[[[0, 1, 1" + b"0" * 400 + b"]]]"),
        ("x.txt", b"[[[0, 1, 2]]]"),
    ],
)
def test_files_without_poses(tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="--controls: expected") as caught:
        read_poses(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.npy", "missing.json", "folder.npy"])
def test_no_file(tmp_path: Path, name: str):
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(ValueError, match=r"--controls: expected .* in .*, got \[Errno"):
        read_poses(tmp_path / name)


def test_several_arrays_under_the_name_of_one(tmp_path: Path):
    np.savez(tmp_path / "x.npz", POSES, POSES)
    (tmp_path / "x.npz").rename(tmp_path / "x.npy")
    with pytest.raises(ValueError, match=r"expected one array in .*, got an archive of several"):
        read_poses(tmp_path / "x.npy")


def test_less_than_half_may_be_far_outside(tmp_path: Path):
    poses = POSES.copy()
    poses[:2] *= 1000
    np.save(tmp_path / "x.npy", poses)
    assert read_poses(tmp_path / "x.npy").shape == (6, 19, 3)
