# SPDX-License-Identifier: Apache-2.0
"""Outlines say the same as the models themselves."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from aapt_fast.models.aapt.config import ControlConfig
from aapt_fast.models.aapt.presets import NANO, NANO_TEXT
from aapt_fast.models.files.outline import read_outline
from aapt_fast.testing.streams import random_model

WITH_MAPS = dataclasses.replace(NANO, control=ControlConfig(kind="maps", channels=3))


@pytest.mark.parametrize(("config", "joints"), [(NANO, 19), (NANO_TEXT, None), (WITH_MAPS, None)])
def test_size_and_joints(tmp_path: Path, config, joints) -> None:
    model, file = random_model(config), tmp_path / "x.safetensors"
    model.save_pretrained(file)
    outline = read_outline(file)
    assert outline is not None and (outline.size, outline.joints) == (model.video_size, joints)


@pytest.mark.parametrize("content", [b"", b"words", (2).to_bytes(8, "little") + b"{}", b"\xff" * 40])
def test_other_files_have_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    assert read_outline(tmp_path / "x") is None
