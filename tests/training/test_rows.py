# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from aapt_fast.training import rows as module
from aapt_fast.training.rows import Rows


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    return Rows(tmp_path / "new", "set", {"seed": 1}, 4, {"a": ("float32", (2,)), "b": ("uint8", ())})


def write(rows: Rows, row: int) -> None:
    rows.write(row, a=np.full(2, row, np.float32), b=np.array(10 * row, np.uint8))


def test_rows_are_there_once_they_are_written(rows: Rows) -> None:
    assert rows.there == 0 and not rows.folder.exists()  # asking writes nothing
    assert rows.begin() == [0, 1, 2, 3]
    for row in (2, 0):
        write(rows, row)
    assert rows.begin() == [1, 3] and rows.there == 2 and not rows.complete
    assert np.load(rows.path("a.npy"))[2].tolist() == [2, 2] and np.load(rows.path("b.npy"))[2] == 20


def test_a_row_that_is_half_written_is_missing(rows: Rows) -> None:
    rows.begin()
    with pytest.raises(ValueError):
        rows.write(1, a=np.ones(2, np.float32), b=np.ones(3, np.uint8))
    assert rows.there == 0 and rows.begin() == [0, 1, 2, 3]


def test_finished_rows_leave_their_arrays_and_card_alone_in_the_folder(rows: Rows) -> None:
    for row in rows.begin():
        write(rows, row)
    rows.finish()
    assert rows.complete and rows.there == 4 and rows.begin() == []
    assert sorted(path.name for path in rows.folder.iterdir()) == ["set.a.npy", "set.b.npy", "set.json"]


@pytest.mark.parametrize("finished", [True, False])
def test_rows_of_another_card_are_replaced(rows: Rows, finished: bool) -> None:
    rows.begin()
    write(rows, 3)
    if finished:
        rows.finish()
    other = dataclasses.replace(rows, card={"seed": 2}, count=2)
    assert other.there == 0 and rows.complete == finished  # asking changes nothing
    assert other.begin() == [0, 1] and not rows.complete and rows.there == 0
    assert np.load(other.path("a.npy")).shape == (2, 2)


@pytest.mark.parametrize("lost", ["a.npy", "there.npy"])
def test_lost_files_are_made_anew(rows: Rows, lost: str) -> None:
    rows.begin()
    write(rows, 1)
    rows.path(lost).unlink()
    assert rows.there == 0 and rows.begin() == [0, 1, 2, 3]
    write(rows, 1)
    assert rows.begin() == [0, 2, 3]


def test_a_kill_before_the_card_is_written_begins_anew(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "write_text", killed)
        rows.begin()
    assert rows.there == 0 and rows.begin() == [0, 1, 2, 3]


def test_a_full_disk_is_an_error_before_any_row(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"set\.a\.npy: cannot be written: No space left"):
        patch.setattr(module.os, "posix_fallocate", full)
        rows.begin()
    assert rows.there == 0
    with pytest.raises(ValueError, match=r"^set: count: expected a value that fits into .*, got one that needs"):
        dataclasses.replace(rows, count=10**15).begin()
    huge = dataclasses.replace(rows, arrays={"a": ("uint8", (10**12, 10**12))})
    assert huge.nbytes == 4 * 10**24  # more than 64 bits
