# SPDX-License-Identifier: Apache-2.0
"""A second world, all of it in this file, goes through rendering, training, evaluation and `aapt-fast generate`.

A bright column stands in a grey room; the control, a map [1, h, w] of its speed, moves it. docs/how-to/add-a-world.md
explains the parts.
"""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from aapt_fast.cli import main
from aapt_fast.models.aapt.config import ControlConfig
from aapt_fast.models.aapt.convert import bidirectional
from aapt_fast.models.aapt.presets import NANO
from aapt_fast.models.vae.mini import MiniVAEConfig
from aapt_fast.training import data, evaluate
from aapt_fast.training.adversarial import AdversarialConfig
from aapt_fast.training.codec import CodecConfig
from aapt_fast.training.consistency import ConsistencyConfig
from aapt_fast.training.data import ClipSetConfig
from aapt_fast.training.diffusion import DiffusionConfig
from aapt_fast.training.pretrain import PretrainConfig
from aapt_fast.training.recipes import Recipe
from aapt_fast.training.stages import MAIN_STAGES, train
from aapt_fast.training.step_latency import step_latency
from aapt_fast.worlds import WORLDS
from aapt_fast.worlds.script import read_script
from aapt_fast.worlds.world import MEDLEY, Clip, FirstFrame, Oddity, Player, World, clip_seed

SPEEDS = {"left": -0.02, "stay": 0.0, "right": 0.02}  # of the frame's width per video frame
CELL = 8  # pixels of a latent cell


def draw(places: Tensor, shade: float, size: int) -> Tensor:
    """Video [T, 3, size, size] in 0..1 of a column at `places` [T], fractions of the width."""
    x = (torch.arange(size) + 0.5) / size
    bright = shade + (1 - shade) * torch.exp(-(((x - places[:, None]) / 0.08) ** 2))
    return bright[:, None, None, :].expand(-1, 3, size, -1)


def speed_maps(speeds: Tensor, size: int) -> Tensor:
    """Controls [T, 1, h, w] of speeds [T]."""
    return (50 * speeds)[:, None, None, None].expand(-1, 1, size // CELL, size // CELL).contiguous()


@dataclass(frozen=True)
class ColumnWorld:
    """Columns; `shades` of them know only these shades of grey."""

    shades: int = 4

    name: ClassVar[str] = "column"
    actions: ClassVar[tuple[str, ...]] = tuple(SPEEDS)
    has_chance: ClassVar[bool] = False

    def settings(self) -> dict[str, Any]:
        return {"world": self.name, **dataclasses.asdict(self)}

    def scene(self, seed: int, clip: int) -> int:
        return clip % self.shades

    def clip(self, seed: int, clip: int, frames: int, size: int, future: int = 0) -> Clip:
        return self._film(seed, clip, frames, size, 1.0)

    def mirrored(self, seed: int, clip: int, frames: int, size: int) -> Clip:
        return self._film(seed, clip, frames, size, -1.0)

    def first_frame(self, seed: int, clip: int, size: int) -> FirstFrame:
        image = self.clip(seed, clip, 1, size).video[0].numpy()
        return self.from_gallery(image, (self._start(seed, clip),), self.scene(seed, clip))

    def from_gallery(self, image: np.ndarray, pose: tuple[float, ...], scene: int | None) -> FirstFrame:
        return FirstFrame(image, speed_maps(torch.zeros(1), len(image))[0], pose, scene)

    def draw_controls(self, controls: Tensor, size: int) -> Tensor:
        return draw(0.5 + controls[:, 0, 0, 0] / 4, 0.0, size)

    def odd_controls(self, controls: Tensor) -> Oddity | None:
        return None

    def player(self, first: FirstFrame, script: str = MEDLEY, seed: int = 0) -> Player:
        return ColumnPlayer(read_script(script, self.actions)[0].action, first)

    def _start(self, seed: int, clip: int) -> float:
        return 0.3 + 0.4 * (clip_seed(seed, clip) % 7) / 7

    def _film(self, seed: int, clip: int, frames: int, size: int, sign: float) -> Clip:
        speeds = sign * torch.full((frames,), list(SPEEDS.values())[clip % 3])
        speeds[0] = 0.0
        video = draw(self._start(seed, clip) + speeds.cumsum(0), self.scene(seed, clip) / 8, size)
        return Clip((video * 255 + 0.5).byte().permute(0, 2, 3, 1), speed_maps(speeds, size))


class ColumnPlayer:
    """Moves the column by one action; a medley stays."""

    def __init__(self, action: str, start: FirstFrame) -> None:
        self._scene, self._size = start.scene, start.image.shape[0]
        self.play(action)
        self._place = torch.tensor(start.pose if start.pose else [0.5])
        self._places = self._place

    def play(self, action: str) -> None:
        self._speed = SPEEDS.get(action, 0.0)

    def next(self, frames: int) -> Tensor:
        self._places = self._place + self._speed * torch.arange(1, frames + 1)
        self._place = self._places[-1:]
        return speed_maps(torch.full((frames,), self._speed), self._size)

    def truth(self, size: int) -> Tensor | None:
        return None if self._scene is None else draw(self._places, self._scene / 8, size)


WORLD: World = ColumnWorld(shades=2)
MODEL = dataclasses.replace(
    NANO, control=ControlConfig(kind="maps", channels=1, entries=4, with_previous=True), control_width=4
)
SHORT: dict[str, Any] = {"steps": 2, "batch": 2, "evaluate_every": 2}
SET = ClipSetConfig("columns", WORLD, clips=4, frames=17, size=32)
RECIPE = Recipe(
    name="nano-column",
    strangers=dataclasses.replace(SET, name="strangers", seed=1),
    gallery=SET,
    held_out_strangers=dataclasses.replace(SET, name="held-out-strangers", clips=2, seed=2),
    held_out_gallery=dataclasses.replace(SET, name="held-out-gallery", clips=2, seed=3),
    first_frames=dataclasses.replace(SET, name="first-frames", clips=2, frames=5, seed=4),
    held_out=(dataclasses.replace(SET, name="held-out", clips=2, seed=5),),
    codec=CodecConfig(
        model=MiniVAEConfig(encoder_widths=(4, 4, 4), decoder_widths=(4, 4, 4)),
        steps=2, batch=1, crop=32, evaluate_every=2, compile=False,
    ),
    pretrain=PretrainConfig(bidirectional(MODEL), clip_frames=5, **SHORT),
    diffusion=DiffusionConfig(MODEL, clip_frames=4, compile=False, **SHORT),
    consistency=ConsistencyConfig(MODEL, clip_frames=4, **SHORT),
    adversarial=AdversarialConfig(MODEL, segment_frames=3, segments=2, adversarial=0.1, discriminator_alone=1, **SHORT),
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of RECIPE."""
    folder = tmp_path_factory.mktemp("column")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "ProcessPoolExecutor", lambda workers, *_, **__: ThreadPoolExecutor(workers))
        patch.setattr(evaluate, "step_latency", lambda *given: step_latency(*given, steps=2, warm=1))
        train(RECIPE, folder, MAIN_STAGES)
    return folder


def test_its_clips_are_rendered_and_kept_under_its_settings(run: Path) -> None:
    clip = WORLD.clip(0, 2, 17, 32)
    assert np.array_equal(np.load(run / "data" / "columns.video.npy")[2], clip.video.numpy())
    assert np.array_equal(np.load(run / "data" / "columns.points.npy")[2], clip.controls.numpy())
    card = json.loads((run / "data" / "columns.json").read_text())
    assert card == {"name": "columns", "clips": 4, "frames": 17, "size": 32, "seed": 0, "world": "column", "shades": 2}


def test_its_report_has_what_can_be_measured_without_a_reader(run: Path) -> None:
    report = (run / "evaluation" / "held-out" / "report.md").read_text()
    titles = [line[4:] for line in report.splitlines() if line.startswith("### ")]
    assert titles == ["summary", "drift", "dynamic degree", "mirror", "latency"]
    assert "| adversarial: mirrored control followed | 2 |" in report
    assert (run / "evaluation" / "held-out" / "drift.png").stat().st_size > 0


def test_a_user_plays_it(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    model, sheet = str(run / "nano-column" / "model.safetensors"), str(tmp_path / "sheet.png")
    generate = ["generate", "--model", model, "--frames", "8", "--scale", "1", "--sheet", sheet]
    assert main([*generate, "--out", str(tmp_path / "a"), "--motion", "right:8"]) == 2
    assert f"--model: expected a gallery of the world {' | '.join(WORLDS)}, got column" in capsys.readouterr().err
    monkeypatch.setitem(WORLDS, "column", WORLD)
    assert main([*generate, "--out", str(tmp_path / "b"), "--motion", "right:8"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["frames"] == 8 and report["psnr_to_truth"] > 0
    assert main([*generate, "--out", str(tmp_path / "c"), "--motion", "walk"]) == 2
    assert "--motion: expected left | stay | right | medley" in capsys.readouterr().err
