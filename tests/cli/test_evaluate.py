# SPDX-License-Identifier: Apache-2.0
"""`aapt-fast evaluate` as a user types it, on a nano model with random weights."""

from __future__ import annotations

import csv
import functools
import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from aapt_fast.cli import main
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.presets import NANO
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.mini import MiniVAE, MiniVAEConfig
from aapt_fast.training import evaluate, pose_network, recipes
from aapt_fast.training.pose_network import PoseNetworkConfig
from aapt_fast.training.step_latency import step_latency

TINY_VAE = MiniVAEConfig(encoder_widths=(4, 4, 4), decoder_widths=(4, 4, 4))


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The file of a nano model, 32x32; its evaluation has a tiny pose network, few timed steps and no plots."""
    tiny = functools.partial(PoseNetworkConfig, widths=(4, 4, 4), clips=2, held_out=1, frames=2, steps=2, batch=2)
    monkeypatch.setattr(recipes, "PoseNetworkConfig", tiny)
    monkeypatch.setattr("aapt_fast.training.report.can_plot", lambda: False)
    monkeypatch.setattr(evaluate, "step_latency", functools.partial(step_latency, steps=2, warm=1))
    path = tmp_path / "nano.safetensors"
    StreamModel(Generator(NANO), MiniVAE(TINY_VAE), name="nano").save_pretrained(path)
    return str(path)


def call(tmp_path: Path, *arguments: str) -> int:
    return main(["evaluate", "--clips", "1", "--frames", "14", "--pose-network", str(tmp_path / "kept"), *arguments])


def test_one_model(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(tmp_path, model, "--nfe", "2", "--out", str(tmp_path / "out")) == 0
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 1  # one line, for programs
    report = json.loads(printed.out)
    assert (tmp_path / "out" / "report.md").read_text() in printed.err  # tables, for people
    plan = "to measure, with evaluations: model (2 per step); 1 clips (held-out) of 16 video frames"
    assert printed.err.index(plan) < printed.err.index("train the pose network")
    assert f"kept in {tmp_path / 'kept'}" in printed.err
    assert "evaluate model on 1 clips of 16 video frames (held-out): the steps alone take about" in printed.err
    assert [row["what"] for row in report["summary"]] == ["model", "codec", "still"] and report["summary"][0][
        "nfe"
    ] == 2
    with (tmp_path / "out" / "drift.csv").open() as file:
        assert len(list(csv.reader(file))) == 1 + 17  # 14 video frames are four steps
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_several_rows(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["--row", f"one step={model}", "--row", f"three steps={model}:3", "--nfe", "1"]
    assert call(tmp_path, *rows) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    summary = {row["what"]: row for row in report["summary"]}
    assert list(summary) == ["one step", "three steps", "codec", "still"]
    assert (summary["one step"]["nfe"], summary["three steps"]["nfe"]) == (1, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL", "--row", "a=MODEL"], "--row: expected either a model or --row, got both"),
        (["--row", "MODEL"], "--row: expected NAME=MODEL or NAME=MODEL:NFE"),
        (["--row", "a=:4"], "--row: expected NAME=MODEL or NAME=MODEL:NFE, got a=:4"),
        (["--row", "a=MODEL:0"], "--row: expected at least 1 evaluation per step, got a="),
        (["--row", "codec=MODEL"], "--row: expected distinct names other than"),
        (["nothing"], "model: expected a bundled model"),
        (["MODEL", "--frames", "0"], "--frames: expected at least 9, for the mirror test, got 0"),
        (["MODEL", "--frames", "8"], "--frames: expected at least 9, for the mirror test, got 8"),
        (["MODEL", "--clips", "0"], "--clips: expected at least 1, got 0"),
        (["MODEL", "--clips", str(10**12)], "--clips: expected a value that fits into"),
        (["MODEL", "--frames", str(10**12)], "--frames: expected a value that fits into"),
        (["MODEL", "--nfe", str(10**12)], "--nfe: expected a value that fits into"),
        (["MODEL", "--out", "MODEL"], "--out: expected a folder, which may be new, got"),
        (["MODEL", "--pose-network", "MODEL"], "--pose-network: expected a folder, which may be new, got"),
    ],
)
def test_mistakes_are_one_line(
    model: str, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(tmp_path, *(argument.replace("MODEL", model) for argument in arguments)) == 2
    printed = capsys.readouterr()
    assert message in printed.err.splitlines()[-1] and printed.out == ""
    assert not (tmp_path / "kept").exists()  # nothing was trained first


def test_the_least_frames_are_enough(model: str, tmp_path: Path) -> None:
    assert call(tmp_path, model, "--frames", "9") == 0


def stop_at(number: int, function: Callable[..., object]) -> Callable[..., object]:
    """The function, whose call of this number sends SIGINT first."""
    calls = []

    def stopping(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == number:
            signal.raise_signal(signal.SIGINT)
        return function(*arguments)

    return stopping


def test_a_stopped_command_tells_what_is_kept(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, kept = tmp_path / "out", tmp_path / "kept"
    with monkeypatch.context() as patch:
        patch.setattr(pose_network, "random_motion", stop_at(2, pose_network.random_motion))
        assert call(tmp_path, model) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    rendered = f"1 of 3 clips for the pose network are rendered and kept in {kept}"
    assert f"stopped by SIGINT; {rendered}; measurements are only kept with --out. The same command resumes" in said
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "make_group", stop_at(2, evaluate.make_group))
        assert call(tmp_path, model, "--clips", "5", "--out", str(out)) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"the pose network is kept in {kept}" in said and f"4 of 5 clips are measured and kept in {out}" in said
