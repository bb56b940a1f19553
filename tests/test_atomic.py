# SPDX-License-Identifier: Apache-2.0
"""Files that cannot be written whole are not there, and the error says which one and why."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from aapt_fast.atomic import replacing
from aapt_fast.training.files import save_finite, write_csv, write_text
from aapt_fast.training.sheet import save_sheet

FULL = Path("/dev/full")
WRITERS: dict[str, Callable[[Path], None]] = {
    "x.json": lambda path: write_text(path, "text"),
    "x.csv": lambda path: write_csv(path, [{"a": 1}]),
    "x.pt": lambda path: save_finite(path, {"a": torch.zeros(10_000)}),
    "x.png": lambda path: save_sheet(path, [torch.zeros(2, 3, 16, 16)]),
}


@pytest.mark.skipif(not FULL.is_char_device(), reason="no /dev/full on this system")
@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path, name: str, there: bool) -> None:
    path = tmp_path / name
    if there:
        path.write_text("old")
    (tmp_path / f".x.partial{path.suffix}").symlink_to(FULL)
    with pytest.raises(OSError, match=f"^{path}: cannot be written: No space left on device$") as caught:
        WRITERS[name](path)
    assert caught.value.errno == errno.ENOSPC
    assert [each.name for each in tmp_path.iterdir()] == [name] * there
    assert not there or path.read_text() == "old"


def test_other_errors_stay_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="'nowhere'"), replacing(tmp_path / "x") as partial:
        partial.touch()
        os.stat("nowhere")
    assert list(tmp_path.iterdir()) == []
