# SPDX-License-Identifier: Apache-2.0
"""`aapt-fast train` as far as the command line goes; the recipes have tests of their own."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from aapt_fast.cli import main, train
from aapt_fast.progress import say
from aapt_fast.training.place import Place
from aapt_fast.training.recipes import ANYONE, PERSON, Recipe
from aapt_fast.training.run import CHECKPOINT, Stop, TrainingRun, Watch


def test_start_replaces_what_a_recipe_goes_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[Recipe, Path, tuple[str, ...], object]] = []
    monkeypatch.setattr(train, "train", lambda *arguments: begun.append(arguments))
    assert main(["train", "anyone", "--out", str(tmp_path), "--start", "mini-anyone"]) == 0
    assert main(["train", "anyone", "--out", str(tmp_path), "--stage", "codec"]) == 0
    assert begun[0][0].start == "mini-anyone" and begun[0][0].diffusion == ANYONE.diffusion
    assert begun[1][:3] == (ANYONE, tmp_path, ("codec",))


def test_a_codec_is_taken_instead_of_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple] = []
    monkeypatch.setattr(train, "train", lambda *arguments: begun.append(arguments))
    assert main(["train", "person", "--out", str(tmp_path), "--codec", "mini-anyone"]) == 0
    assert (begun[0][0].codec, begun[0][0].vae, begun[0][0].diffusion) == (None, "mini-anyone", PERSON.diffusion)


@pytest.mark.parametrize(
    ("recipe", "codec", "said"),
    [
        ("anyone", "mini-person", "--codec: expected none for a recipe that takes that of its start, got mini-person"),
        ("person", "no-such-file", "--codec: expected a bundled model (mini-anyone"),
    ],
)
def test_codecs_that_cannot_be_taken_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: str, codec: str, said: str
) -> None:
    assert main(["train", recipe, "--out", str(tmp_path / "run"), "--codec", codec]) == 2
    assert said in capsys.readouterr().err


def test_a_recipe_that_begins_from_nothing_takes_no_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "person", "--out", str(tmp_path / "run"), "--start", "mini-person"]) == 2
    assert "--start: expected none for a recipe that begins from nothing, got mini-person" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_file_is_no_folder_for_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = tmp_path / "x.mp4"
    video.touch()
    assert main(["train", "person", "--out", str(video)]) == 2
    assert "--out: expected a folder, which may be new, got" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_step_and_the_command_with_status_130(
    kind: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(kind)

    def steps(recipe: Recipe, out: Path, stages: tuple[str, ...], stop: Stop, place: Place) -> None:
        run = TrainingRun(out, recipe.consistency, {}, watch=Watch("a stage", stop))
        for step in run.steps(9, seed=0):
            if step == 1:
                signal.raise_signal(kind)

    monkeypatch.setattr(train, "train", steps)
    assert main(["train", "anyone", "--out", str(tmp_path)]) == 130
    said = (
        f"aapt-fast train: stopped after step 2 of 9; {tmp_path / CHECKPOINT} holds the state after step 2, all finite"
    )
    assert said in capsys.readouterr().err
    assert signal.getsignal(kind) == before


def test_quiet_leaves_out_plan_and_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "train", lambda *_: say("train mini-anyone"))
    for arguments, shown in (([], "train mini-anyone\n"), (["--quiet"], "")):
        assert main(["train", "anyone", "--out", str(tmp_path), *arguments]) == 0
        assert capsys.readouterr() == ("", shown)
