# SPDX-License-Identifier: Apache-2.0
"""The comparison of several futures tells a model that chooses from one that averages."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from aapt_fast.testing.chance import ChanceWorld
from aapt_fast.training import several_futures
from aapt_fast.training.data import ClipSetConfig, futures, to_float
from aapt_fast.training.report import Measurements, futures_table
from aapt_fast.training.several_futures import ANOTHER, AVERAGE, FUTURES, SAMPLES, measure_futures

CONFIG = ClipSetConfig("chance", ChanceWorld(), clips=2, size=32)
CLIPS = range(2)
SHORT = dataclasses.replace(CONFIG, frames=25)


@pytest.fixture(scope="module")
def possible() -> Tensor:
    """True futures [B, K + S, 3, T, H, W] of the clips, as `measure_futures` renders them."""
    return torch.stack([to_float(futures(SHORT, clip, FUTURES + SAMPLES)) for clip in CLIPS])


def table(monkeypatch: pytest.MonkeyPatch, play) -> dict[str, dict]:
    """What is said of a model whose videos are play(sample)."""
    asked = []

    def generate(model, image, points, seeds, nfe):
        assert model == "model" and nfe == 3 and image.shape == (2, 3, 1, 32, 32) and points.shape == (2, 25, 1, 2, 2)
        asked.append(tuple(seeds.tolist()))
        return play(len(asked) - 1)

    monkeypatch.setattr(several_futures, "FRAMES", 24)
    monkeypatch.setattr(several_futures, "generate_video", generate)
    measured = Measurements()
    measure_futures(measured, {"row": ("model", 3)}, CONFIG, CLIPS)
    assert len(set(asked)) == SAMPLES and len({seed for seeds in asked for seed in seeds}) == 2 * SAMPLES
    return {row["what"]: row for row in futures_table(measured.futures)}


def test_who_plays_a_true_future_is_as_good_as_one(monkeypatch, possible):
    rows = table(monkeypatch, lambda sample: possible[:, FUTURES + sample])
    assert {**rows["row"], "what": ""} == {**rows[ANOTHER], "what": ""}
    assert rows[ANOTHER]["mean above nearest dB"] < 3 and rows[ANOTHER]["sharpness"] > 0.9
    assert 0.3 < rows[ANOTHER]["diversity"] < 3


def test_who_averages_is_found_out(monkeypatch, possible):
    average = possible[:, :FUTURES].mean(1)
    rows = table(monkeypatch, lambda sample: average + 0.01 * torch.randn_like(average))
    assert rows["row"]["mean above nearest dB"] > 6 and rows["row"]["diversity"] < 0.1
    assert rows["row"]["sharpness"] < rows[ANOTHER]["sharpness"]
    assert rows[AVERAGE]["mean future dB"] == "-" and rows[AVERAGE]["diversity"] == 0


def test_more_clips_are_appended(monkeypatch):
    monkeypatch.setattr(several_futures, "FRAMES", 4)
    measured = Measurements()
    for clip in CLIPS:
        measure_futures(measured, {}, CONFIG, [clip])
    assert measured.futures[ANOTHER, "nearest"].shape == (2, 4)
