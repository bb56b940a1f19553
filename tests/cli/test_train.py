# SPDX-License-Identifier: Apache-2.0
"""`aapt-fast train` as far as the command line goes; the recipes have tests of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from aapt_fast.cli import main, train
from aapt_fast.training.recipes import ANYONE, Recipe


def test_start_replaces_what_a_recipe_goes_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[Recipe, Path, tuple[str, ...]]] = []
    monkeypatch.setattr(train, "train", lambda *arguments: begun.append(arguments))
    assert main(["train", "anyone", "--out", str(tmp_path), "--start", "old.safetensors"]) == 0
    assert main(["train", "anyone", "--out", str(tmp_path), "--stage", "codec"]) == 0
    assert begun[0][0].start == "old.safetensors" and begun[0][0].diffusion == ANYONE.diffusion
    assert begun[1] == (ANYONE, tmp_path, ("codec",))


def test_a_recipe_that_begins_from_nothing_takes_no_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "person", "--out", str(tmp_path / "run"), "--start", "mini-person"]) == 2
    assert "--start: expected none for a recipe that begins from nothing, got mini-person" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
