# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from aapt_fast.errors import CheckpointError
from aapt_fast.models.aapt.convert import bidirectional
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.presets import GENERATORS, NANO, NANO_TEXT
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.mini import MiniVAE
from aapt_fast.testing.streams import SMALL_VAE
from aapt_fast.verification.cases import SUITES
from aapt_fast.verification.shapes import timed_shapes


def test_without_a_preset_they_are_those_of_the_suites() -> None:
    assert timed_shapes() == {op: suite.shapes for op, suite in SUITES.items()}


@pytest.mark.parametrize("preset", GENERATORS)
def test_every_preset_has_one_shape_per_op(preset: str) -> None:
    shapes = timed_shapes(preset)
    assert set(shapes) == set(SUITES)
    assert all(len(timed) == 1 and len(timed[0]) == len(SUITES[op].tiny) for op, timed in shapes.items())


def test_the_large_preset_has_shapes_that_the_suites_name_too() -> None:
    for op, (shape,) in timed_shapes("aapt-8b").items():
        assert shape in SUITES[op].shapes


@pytest.mark.parametrize("name", ["mini-person", "mini-anyone"])
def test_a_bundled_model_has_the_shapes_of_its_file(name: str) -> None:
    shapes = timed_shapes(name)
    assert shapes["paged_attention"] == ((36, 36 * 7, 4, 56),)  # 6 x 6 patches; 5 past frames, the first, the own one
    assert shapes["channel_concat"] == ((64, 12, 12, 224),)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A model of the user's, with another window than its preset."""
    config = dataclasses.replace(NANO_TEXT, window=9)
    StreamModel(Generator(config), MiniVAE(SMALL_VAE)).save_pretrained(tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_a_file_or_its_folder_is_a_model(file: Path) -> None:
    expected = {**timed_shapes("nano-text"), "paged_attention": ((6, 6 * 11, 2, 16),)}
    assert timed_shapes(file) == timed_shapes(str(file.parent)) == expected


def test_what_is_no_model(file: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^shapes: expected a preset \(aapt-8b, .*\), a bundled .*, got huge: nothing"
    ):
        timed_shapes("huge")
    with pytest.raises(TypeError, match=r"^shapes: expected str or PathLike, got int"):
        timed_shapes(8)
    notes = tmp_path / "notes.txt"
    notes.write_text("heads: 4")
    with pytest.raises(CheckpointError, match=r"notes.txt: expected a model of this package"):
        timed_shapes(notes)
    for content, message in ((file.read_bytes()[:100], "model.safetensors: expected"), (b"", "expected")):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            timed_shapes(file)


def test_a_bidirectional_model_does_not_stream(tmp_path: Path) -> None:
    model = StreamModel(Generator(bidirectional(NANO)), MiniVAE(SMALL_VAE))
    model.save_pretrained(tmp_path / "clip.safetensors")
    with pytest.raises(
        ValueError, match=r"^shapes: expected a model that streams, got .*clip.safetensors, which is bi"
    ):
        timed_shapes(tmp_path / "clip.safetensors")
