# SPDX-License-Identifier: Apache-2.0
"""The notebook runs from top to bottom on a machine without a GPU, and is committed without outputs."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_it_runs(path: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    shown = [kind for cell in notebook.cells for out in cell.get("outputs", []) for kind in out.get("data", {})]
    assert shown.count("image/gif") == 2
    with Image.open(tmp_path / "wave.gif") as video:
        assert (video.n_frames, video.size) == (48, (96, 96))
    with Image.open(tmp_path / "futures.gif") as video:
        assert (video.n_frames, video.size) == (32, (192, 96))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_its_links_lead_to_files(path: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#\\]+)", path.read_text())
    assert targets and [target for target in targets if not (path.parent / target).exists()] == []
