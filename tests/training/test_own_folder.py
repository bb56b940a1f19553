# SPDX-License-Identifier: Apache-2.0
"""A training begins in a new or empty folder, resumes in its own, and leaves the files of others alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from aapt_fast.training.own_folder import require_own_folder, require_report_folder


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    "names",
    [
        [],
        [".lock"],
        [".gitignore"],
        ["data/gallery.video.npy"],
        ["recipe.json", "notes.txt"],
        ["codec/config.json", "notes.txt"],
        ["codec/vae.pt"],
        ["diffusion/generator.pt"],
    ],
)
def test_own_folders(tmp_path: Path, names: list[str]) -> None:
    require_own_folder("out", tmp_path / "new")
    require_own_folder("out", make(tmp_path, *names))


@pytest.mark.parametrize(
    "names", [["photo.jpg"], ["transformer/config.json"], ["data/x.npy", "photo.jpg"], ["codec/notes.txt"]]
)
def test_folders_of_others(tmp_path: Path, names: list[str]) -> None:
    first = names[-1].partition("/")[0]
    with pytest.raises(ValueError, match=f"^out: expected a new or empty folder, or that of a .* with {first}$"):
        require_own_folder("out", make(tmp_path, *names))


@pytest.mark.parametrize("names", [[], [".lock"], ["measured.pt", "notes.txt"], ["drift.csv", "report.md"]])
def test_an_evaluation_resumes_in_its_own_folder(tmp_path: Path, names: list[str]) -> None:
    require_report_folder("out", tmp_path / "new")
    require_report_folder("out", make(tmp_path, *names))


def test_an_evaluation_replaces_no_report_of_others(tmp_path: Path) -> None:
    message = r"^out: expected a new or empty folder, or that of an evaluation .* with report\.md$"
    with pytest.raises(ValueError, match=message):
        require_report_folder("out", make(tmp_path, "report.md"))
