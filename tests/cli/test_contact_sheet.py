# SPDX-License-Identifier: Apache-2.0
"""Contact sheets: the ending says the format, and what cannot be written is known before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aapt_fast.cli.checks import check_sheet_target
from aapt_fast.cli.contact_sheet import MOST_KEPT, ContactSheet
from aapt_fast.training.metrics import psnr
from aapt_fast.training.sheet import save_sheet
from aapt_fast.worlds.person.identity import make_identity
from aapt_fast.worlds.person.players import random_motion
from aapt_fast.worlds.person.renderer import render
from aapt_fast.worlds.person.skeleton import forward_kinematics, pose_points
from aapt_fast.worlds.person.world import PersonWorld


@pytest.mark.parametrize(
    ("name", "kind"), [("x.png", "PNG"), ("x.JPG", "JPEG"), ("x.jpeg", "JPEG"), ("x.webp", "WEBP")]
)
def test_the_ending_says_the_format(tmp_path: Path, name: str, kind: str):
    path = tmp_path / name
    check_sheet_target(path)
    save_sheet(path, [torch.zeros(3, 3, 16, 16), torch.ones(2, 3, 16, 16)], zoom=2)
    with Image.open(path) as picture:
        assert picture.format == kind and picture.size == (96, 64)
    assert list(tmp_path.iterdir()) == [path]


def test_bad_targets(tmp_path: Path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ValueError, match=r"--sheet: expected a name ending in .png, .jpg, .jpeg or .webp, got .*x.txt"):
        check_sheet_target(tmp_path / "x.txt")
    with pytest.raises(ValueError, match=r"--sheet: expected a file, got the folder .*folder.png"):
        check_sheet_target(tmp_path / "folder.png")
    with pytest.raises(OSError, match=r"--sheet: expected a folder that exists, got .*missing, which does not exist"):
        check_sheet_target(tmp_path / "missing" / "x.png")


@pytest.mark.parametrize("portion", [1, 4, 40])
def test_a_sheet_of_a_video_as_it_comes(tmp_path: Path, portion: int):
    """Twelve columns from the first frame to the last, and the distance of all frames, not only of those shown."""
    angles = random_motion(40, 3)
    points, truth = pose_points(angles), render(forward_kinematics(angles), make_identity(5), 32)
    video = (truth.permute(0, 2, 3, 1) * 255).round().byte()
    video[1::2] = 255 - video[1::2]  # frame 1 is not shown
    sheet = ContactSheet(tmp_path / "x.png", PersonWorld())
    for first in range(0, 40, portion):
        part = slice(first, first + portion)
        sheet.add(video[part], points[part], truth[part])
    report = sheet.write()
    expected = psnr(video.permute(3, 0, 1, 2) / 127.5 - 1, truth.transpose(0, 1) * 2 - 1).mean()
    assert report["psnr_to_truth"] == pytest.approx(float(expected), abs=0.02)
    with Image.open(tmp_path / "x.png") as picture:
        pixels = torch.from_numpy(np.array(picture))[::2, ::2]
    assert pixels.shape == (3 * 32, 12 * 32, 3)
    shown = torch.linspace(0, 39, 12).long().tolist()
    assert torch.equal(pixels[64:], torch.cat(list(video[shown]), dim=1))
    assert torch.equal(pixels[32:64, :32], video[0])


@pytest.mark.parametrize("length", [5, 96, 97, 1000])
def test_a_video_of_any_length_fills_a_sheet_and_little_memory(tmp_path: Path, length: int):
    """As for a stopped video, whose planned length says nothing about its columns."""
    sheet = ContactSheet(tmp_path / "x.png", PersonWorld())
    numbers = torch.arange(length)
    video = torch.stack([numbers // 100, numbers % 100, 0 * numbers], dim=1).byte()  # the frame's number is its colour
    most = 0
    for part in video[:, None, None].expand(-1, 4, 4, -1).split(4):
        sheet.add(part, torch.zeros(len(part), 19, 3), None)
        most = max(most, len(sheet._kept))
    assert most <= MOST_KEPT and sheet.write_unfinished() == tmp_path / "x.png"
    with Image.open(tmp_path / "x.png") as picture:
        pixels = torch.from_numpy(np.array(picture))[::2, ::2].long()
    shown = pixels[4, ::4]
    shown = shown[:, 0] * 100 + shown[:, 1]
    wanted = torch.linspace(0, length - 1, min(12, length), dtype=torch.float64)
    gap = max(1, (length - 1) / 11)
    assert len(shown) == len(wanted) and shown[0] == 0 and shown[-1] == length - 1
    assert ((wanted - shown) / gap).abs().max() < 0.3 or length < 12


def test_a_sheet_without_a_truth(tmp_path: Path):
    sheet = ContactSheet(tmp_path / "x.png", PersonWorld())
    sheet.add(torch.zeros(4, 32, 32, 3, dtype=torch.uint8), torch.rand(4, 19, 3), None)
    assert sheet.write() == {"sheet": str(tmp_path / "x.png")}
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.size == (2 * 4 * 32, 2 * 2 * 32)  # no frame twice
