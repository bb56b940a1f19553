# SPDX-License-Identifier: Apache-2.0
"""Files that cannot be written whole are not there, and the error says which one and why."""

from __future__ import annotations

import errno
import os
import re
import resource
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from aapt_fast.atomic import replacing
from aapt_fast.models.files.write import Entry, write_safetensors, write_shards
from aapt_fast.training.files import save_finite, write_csv, write_text
from aapt_fast.training.sheet import save_sheet


def write_weights(path: Path) -> None:
    with replacing(path) as partial:
        write_safetensors(partial, {"a": torch.zeros(10)}, {})


WRITERS: dict[str, Callable[[Path], None]] = {
    "x.json": lambda path: write_text(path, "text"),
    "x.csv": lambda path: write_csv(path, [{"a": 1}]),
    "x.pt": lambda path: save_finite(path, {"a": torch.zeros(10_000)}),
    "x.png": lambda path: save_sheet(path, [torch.zeros(2, 3, 16, 16)]),
}
ALL_WRITERS = {**WRITERS, "x.safetensors": write_weights}


@contextmanager
def no_room() -> Iterator[None]:
    """Stand in for a full disk: every write to a file is an OSError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def permissions(path: Path) -> str:
    return oct(stat.S_IMODE(path.stat().st_mode))


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path, name: str, there: bool) -> None:
    path = tmp_path / name
    if there:
        path.write_text("old")
    with no_room(), pytest.raises(OSError, match=f"^{path}: cannot be written: File too large$") as caught:
        WRITERS[name](path)
    assert caught.value.errno == errno.EFBIG
    assert [each.name for each in tmp_path.iterdir()] == [name] * there
    assert not there or path.read_text() == "old"


@pytest.mark.parametrize("name", ALL_WRITERS)
def test_a_result_has_the_permissions_of_an_ordinary_file_or_of_the_one_it_replaces(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for mask, expected in ((0o027, "0o640"), (0o002, "0o664")):
        with umask(mask):
            ALL_WRITERS[name](path)
        assert permissions(path) == expected
        path.unlink()
    path.touch()
    path.chmod(0o604)
    ALL_WRITERS[name](path)
    assert permissions(path) == "0o604" and [each.name for each in tmp_path.iterdir()] == [name]


def test_converted_weights_have_the_permissions_of_an_ordinary_file(tmp_path: Path) -> None:
    tensor = torch.zeros(10)
    entry = Entry("a", tensor.dtype, tensor, "a", tmp_path / "source")
    with umask(0o022):
        write_shards(tmp_path, [entry], shard_bytes=1000, metadata={}, say=lambda line: None)
    assert permissions(tmp_path / "model.safetensors") == "0o644"


@pytest.mark.parametrize("name", ALL_WRITERS)
def test_of_a_link_the_file_behind_it_is_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    link, target = tmp_path / name, tmp_path / "elsewhere" / name
    link.symlink_to(Path("elsewhere") / name)
    for _ in ("the file is new", "the file is there"):
        ALL_WRITERS[name](link)
        assert link.is_symlink() and target.stat().st_size > 0
        assert [each.name for each in target.parent.iterdir()] == [name]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    with replacing(path) as first, replacing(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


def test_only_files_are_replaced(tmp_path: Path) -> None:
    pipe, loop = tmp_path / "pipe", tmp_path / "loop"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    refused = {
        tmp_path: "the folder .*",
        pipe: ".*, which is a device, a pipe or a socket",
        Path("/dev/null"): "/dev/null, which is a device, a pipe or a socket",
        Path("/dev/stdout"): "/dev/stdout, which is a device, a pipe or a socket",
        loop: ".*, a symbolic link that leads to itself",
    }
    for path, got in refused.items():
        with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: expected a file, got {got}$"):
            write_text(path, "text")
    assert stat.S_ISFIFO(pipe.stat().st_mode) and stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_other_errors_stay_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="'nowhere'"), replacing(tmp_path / "x"):
        os.stat("nowhere")
    assert list(tmp_path.iterdir()) == []
