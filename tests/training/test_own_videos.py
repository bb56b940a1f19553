# SPDX-License-Identifier: Apache-2.0
"""A folder of one's own videos goes through all stages, and its model is played; docs/how-to/train-on-own-videos.md."""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tests.worlds.test_filmed import write_video
from tests.worlds.test_new_world import RECIPE as TINY

from aapt_fast.cli import main
from aapt_fast.models.aapt.presets import PERSON_CONTROL
from aapt_fast.training import data, evaluate
from aapt_fast.training.own_videos import own_recipe
from aapt_fast.training.recipes import Recipe
from aapt_fast.training.stages import MAIN_STAGES, train
from aapt_fast.training.step_latency import step_latency

pytest.importorskip("av")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten clips in two films."""
    root = tmp_path_factory.mktemp("films")
    write_video(root / "a.mp4", frames=425)
    write_video(root / "b.mp4", frames=185)
    return root


def with_controls(folder: Path, to: Path, *shape: int) -> Path:
    """The same films in the folder `to`, with random controls."""
    for name, frames in (("a", 425), ("b", 185)):
        (to / f"{name}.mp4").write_bytes((folder / f"{name}.mp4").read_bytes())
        np.save(to / f"{name}.npy", np.random.default_rng(0).random((frames, *shape), dtype=np.float32))
    return to


def shortened(recipe: Recipe) -> Recipe:
    """Clips of 17 video frames, as the tiny stages take."""
    few = {
        name: dataclasses.replace(getattr(recipe, name), frames=17, clips=1 if "held" in name else 4)
        for name in ("gallery", "held_out_gallery")
    }
    adversarial = dataclasses.replace(recipe.adversarial, segments=1)  # as long as a clip
    return dataclasses.replace(recipe, **few, held_out=(few["held_out_gallery"],), adversarial=adversarial)


@pytest.mark.parametrize("shape", [(), (19, 3)], ids=["without controls", "poses"])
def test_all_stages_run_and_the_model_is_played(
    shape: tuple[int, ...], folder: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(data, "ProcessPoolExecutor", lambda workers, *_, **__: ThreadPoolExecutor(workers))
    monkeypatch.setattr(evaluate, "step_latency", lambda *given: step_latency(*given, steps=2, warm=1))
    if shape:
        (tmp_path / "data").mkdir()
        folder = with_controls(folder, tmp_path / "data", *shape)
    recipe = shortened(own_recipe(folder, base=TINY))
    assert recipe.adversarial.refinement == (0 if shape else 1) and recipe.gallery.world.clips == 9
    train(recipe, tmp_path / "run", MAIN_STAGES)
    model = str(tmp_path / "run" / "own" / "model.safetensors")
    generate = ["generate", "--model", model, "--frames", "8", "--scale", "1"]
    assert main([*generate, "--motion", "still", "--out", str(tmp_path / "png")]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["frames"] == 8
    report = (tmp_path / "run" / "evaluation" / "own-held-out" / "report.md").read_text()
    assert "### drift" in report and "### mirror" not in report


@pytest.mark.parametrize(
    ("shape", "limbs", "said"),
    [
        ((19, 3), None, None),
        ((5, 3), "[[0, 1], [3, 4]]", None),
        ((5, 3), None, "data: expected the file limbs.json with pairs of joints"),
        ((5, 3), "[[0, 5]]", r"limbs.json: expected pairs of joints below 5, .*control.limbs"),
        ((5, 3), "[0]", r"limbs.json: expected pairs of joints below 5"),
        ((6, 4, 4), None, None),
        ((6, 4, 5), None, r"data: expected maps \[T, C, 4, 4\], a value for every 8 x 8 pixels, got \[T, 6, 4, 5\]"),
    ],
)
def test_the_control_of_the_model_is_that_of_the_files(
    shape: tuple[int, ...], limbs: str | None, said: str | None, folder: Path, tmp_path: Path
) -> None:
    with_controls(folder, tmp_path, *shape)
    if limbs is not None:
        (tmp_path / "limbs.json").write_text(limbs)
    if said is not None:
        with pytest.raises(ValueError, match=said):
            own_recipe(tmp_path, base=TINY)
        return
    control = own_recipe(tmp_path, base=TINY).diffusion.model.control
    assert control is not None and control.with_previous
    if len(shape) == 3:
        assert (control.kind, control.channels, control.entries) == ("maps", 6, 4)
    else:
        assert (control.joints, control.limbs) == (
            shape[0],
            PERSON_CONTROL.limbs if limbs is None else ((0, 1), (3, 4)),
        )


def test_too_few_clips_are_refused(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match=r"data: expected videos with at least 10 clips of 2.5 s, got 2 clips in"):
        own_recipe(tmp_path)


# ---- the commands ----


def test_data_check_says_what_is_there(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(folder), "--quiet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 videos of 25 s in all can be trained on: 10 clips of 2.5 s"
    assert "sizes: 48x32 (2 videos); the middle of each picture becomes 96x96" in lines and lines[-1] == "faults: none"
    assert main(["data", "check", str(folder), "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["clips"], found["faults"], found["films"][1]["fps"]) == (10, [], pytest.approx(24))
    (tmp_path / "a.mp4").write_bytes(b"nonsense")
    write_video(tmp_path / "b.mp4")
    assert main(["data", "check", str(tmp_path), "--quiet"]) == 1
    assert "faults: 1\n" in (said := capsys.readouterr().out) and "a.mp4: expected a video that can be read" in said


def test_data_check_says_that_there_is_too_little(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_video(tmp_path / "a.mp4")
    assert main(["data", "check", str(tmp_path), "--quiet"]) == 1
    assert "at least 10 clips" in capsys.readouterr().out
    assert main(["data", "check", str(tmp_path / "nowhere")]) == 2
    assert "folder: expected one that exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["own"], "--data: expected a folder of videos"),
        (["person", "--data", "."], "--data: expected none for the recipe person"),
        (["person", "--skip-faults"], "--skip-faults: expected the recipe own"),
        (["own", "--data", "nowhere"], "--data: expected a folder that exists"),
        (
            ["own", "--data", ".", "--start", "mini-person"],
            "--start: expected none for a recipe that begins from nothing",
        ),
    ],
)
def test_options_that_do_not_fit(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments, "--out", "run"]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_train_own_reads_the_folder_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_video(tmp_path / "data" / "a.mp4")
    assert main(["train", "own", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")]) == 2
    assert "data: expected videos with at least 10 clips" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
