# SPDX-License-Identifier: Apache-2.0
"""Poses from files: what can be read, and what is wrong with the rest in one line, without numpy's and json's words."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from aapt_fast.cli.pose_file import read_poses

POSES = np.random.default_rng(0).random((6, 19, 3))
ONE_NAN = np.where(np.arange(POSES.size).reshape(POSES.shape) == 7, np.nan, POSES)
EXPECTED = re.escape("--controls: expected a .npy or .json file with finite numbers of shape [frames, 19, 3], got ")


@pytest.mark.parametrize("name", ["x.npy", "x.NPY", "x.json"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
def test_real_numbers_of_any_kind(tmp_path: Path, name: str, dtype: type):
    path, poses = tmp_path / name, POSES.astype(dtype)
    if name == "x.json":
        path.write_text(json.dumps(poses.tolist()))
    else:
        with path.open("wb") as file:
            np.save(file, poses)
    read = read_poses(path)
    assert read.dtype == np.float32 and np.array_equal(read, poses.astype(np.float32))


@pytest.mark.parametrize(
    ("values", "got"),
    [
        (POSES + 1j, "x.npy with values of type complex128"),
        (POSES > 0.5, "x.npy with values of type bool"),
        (POSES.astype(str), "x.npy with values of type <U"),
        (POSES.astype(object), "x.npy, which is damaged or holds Python objects"),
        (ONE_NAN, "x.npy with nan or inf"),
        (POSES * 1e300, "x.npy with nan or inf"),
        (POSES[0], "x.npy with shape [19, 3]"),
        (POSES[..., :2], "x.npy with shape [6, 19, 2]"),
        (POSES[:0], "x.npy with shape [0, 19, 3]"),
        (np.float32(1), "x.npy with shape []"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_arrays_that_are_no_poses(tmp_path: Path, values: np.ndarray, got: str):
    np.save(tmp_path / "x.npy", values, allow_pickle=True)
    with pytest.raises(ValueError, match=rf"^{EXPECTED}\S*{re.escape(got)}"):
        read_poses(tmp_path / "x.npy")


@pytest.mark.parametrize(
    ("name", "content", "got"),
    [
        ("x.npy", b"", "which is not written by numpy.save"),
        ("x.npy", b"words", "which is not written by numpy.save"),
        ("x.npy", b"\x93NUMPY\x01\x00", "which is damaged or holds Python objects"),
        ("x.json", b"", "which is no JSON from line 1, column 1 on"),
        ("x.json", b"[[0,\n oops]]", "which is no JSON from line 2, column 2 on"),
        ("x.json", b"\xff", "which is no JSON"),
        ("x.json", b"[" * 100_000, "which is no JSON"),
        ("x.json", b"[[[0, 1], [0, 1, 2]]]", "whose lists differ in length or hold other things than numbers"),
        ("x.json", b"{}", "with a dict, not a list"),
        ("x.json", b"null", "with a NoneType, not a list"),
        ("x.json", b"[]", "with shape [0]"),
        ("x.json", b"[[[0, 1, null]]]", "whose lists hold other things than numbers"),
        ("x.json", b'[[["0", "1", "2"]]]', "with values of type <U1"),
        ("x.json", b"[[[0, 1, NaN]]]", "with nan or inf"),
        ("x.json", b"[[[0, 1, 1" + b"0" * 400 + b"]]]", "whose lists hold other things than numbers"),
        ("x.txt", b"[[[0, 1, 2]]]", "x.txt"),
    ],
)
def test_files_without_poses(tmp_path: Path, name: str, content: bytes, got: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{EXPECTED}\S*{name}.*{re.escape(got)}$|^{EXPECTED}{re.escape(got)}$"):
        read_poses(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "got"),
    [
        ("x.npy", "x.npy, which does not exist"),
        ("x.json", "x.json, which does not exist"),
        ("folder.npy", "the folder "),
    ],
)
def test_no_file(tmp_path: Path, name: str, got: str):
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(ValueError, match=rf"^{EXPECTED}.*{re.escape(got)}"):
        read_poses(tmp_path / name)


def test_several_arrays_under_the_name_of_one(tmp_path: Path):
    np.savez(tmp_path / "x.npz", POSES, POSES)
    (tmp_path / "x.npz").rename(tmp_path / "x.npy")
    with pytest.raises(ValueError, match=rf"^{EXPECTED}\S*x.npy, an archive of several arrays"):
        read_poses(tmp_path / "x.npy")
