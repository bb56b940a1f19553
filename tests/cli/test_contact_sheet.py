# SPDX-License-Identifier: Apache-2.0
"""Contact sheets: the ending says the format, and what cannot be written is known before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from aapt_fast.cli.contact_sheet import check_sheet_target, write_sheet


@pytest.mark.parametrize(
    ("name", "kind"), [("x.png", "PNG"), ("x.JPG", "JPEG"), ("x.jpeg", "JPEG"), ("x.webp", "WEBP")]
)
def test_the_ending_says_the_format(tmp_path: Path, name: str, kind: str):
    path = tmp_path / name
    check_sheet_target(path)
    write_sheet(path, [torch.zeros(3, 3, 16, 16), torch.ones(2, 3, 16, 16)])
    with Image.open(path) as picture:
        assert picture.format == kind and picture.size == (96, 64)
    assert list(tmp_path.iterdir()) == [path]


def test_bad_targets(tmp_path: Path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ValueError, match=r"--sheet: expected a name ending in .png, .jpg, .jpeg or .webp, got x.txt"):
        check_sheet_target(tmp_path / "x.txt")
    with pytest.raises(ValueError, match=r"--sheet: expected a file, got the folder .*folder.png"):
        check_sheet_target(tmp_path / "folder.png")
    with pytest.raises(OSError, match=r"--sheet: expected a writable folder, got .*missing"):
        check_sheet_target(tmp_path / "missing" / "x.png")
