# SPDX-License-Identifier: Apache-2.0
"""A signal or an error in the middle of `aapt-fast generate` keeps the video so far and replaces nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from aapt_fast.cli import generate as generating
from aapt_fast.cli import main
from aapt_fast.cli.contact_sheet import ContactSheet
from aapt_fast.media.video_writer import VideoWriter
from aapt_fast.streaming.frames import FrameIterator


def generate(model: Path, out: Path, *arguments: str) -> int:
    return main(["generate", "--model", str(model), "--frames", "40", "--scale", "1", "--out", str(out), *arguments])


def test_ctrl_c_keeps_the_video_so_far(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    command = [sys.executable, "-m", "aapt_fast", "generate", "--model", str(model), "--frames", "400000"]
    process = subprocess.Popen(
        [*command, "--motion", "walk", "--out", str(out / "frames")],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # a shell starts its background jobs with SIGINT ignored, which would be inherited
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 120
        while not list(out.glob(".frames*/000007.png")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        printed, said = (each.decode() for each in process.communicate(timeout=60))
    finally:
        process.kill()
    assert process.returncode == 130 and printed == ""
    made = len(list((out / "frames").iterdir()))
    assert made >= 8 and list(out.iterdir()) == [out / "frames"]
    assert f"{made} video frames are in {out / 'frames'}" in said.splitlines()
    assert said.splitlines()[-1] == "aapt-fast generate: stopped by SIGINT"


def interrupted(monkeypatch: pytest.MonkeyPatch, step: int, interruption: Callable[[], object]) -> None:
    """Make `interruption` happen before the video of that step is there."""
    one_step, taken = FrameIterator.__next__, []

    def take(videos: FrameIterator) -> torch.Tensor:
        taken.append(one_step(videos))
        if len(taken) == step:
            interruption()
        return taken[-1]

    monkeypatch.setattr(FrameIterator, "__next__", take)


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("name", ["x.mp4", "x.gif", "frames"])
def test_a_signal_keeps_the_video_so_far(
    model: Path,
    tmp_path: Path,
    name: str,
    kind: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    interrupted(monkeypatch, 3, lambda: os.kill(os.getpid(), kind))
    before = signal.getsignal(kind)
    assert generate(model, out / name, "--sheet", str(out / "x.png")) == 130
    printed = capsys.readouterr()
    assert printed.out == "" and f"8 video frames are in {out / name}" in printed.err.splitlines()
    assert f"the sheet of them is {out / 'x.png'}" in printed.err.splitlines()
    assert sorted(out.iterdir()) == sorted([out / name, out / "x.png"]) and signal.getsignal(kind) is before


def test_a_stopped_run_replaces_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("x.gif", "x.png"):
        (out / name).write_text("old")
    interrupted(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert generate(model, out / "x.gif", "--sheet", str(out / "x.png")) == 130
    assert f"8 video frames are in {out / 'x.stopped.gif'}" in capsys.readouterr().err.splitlines()
    assert sorted(path.name for path in out.iterdir()) == ["x.gif", "x.png", "x.stopped.gif", "x.stopped.png"]
    assert (out / "x.gif").read_text() == (out / "x.png").read_text() == "old"


def test_two_runs_to_one_new_name_keep_both_results(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()

    def other() -> None:
        for name in ("x.gif", "x.png"):
            (out / name).write_text("of the other run")

    interrupted(monkeypatch, 3, other)
    assert generate(model, out / "x.gif", "--sheet", str(out / "x.png")) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert (report["out"], report["sheet"]) == (str(out / "x-2.gif"), str(out / "x-2.png"))
    said = f"--out: another program has made {out / 'x.gif'} meanwhile; the video is in {out / 'x-2.gif'}"
    assert said in printed.err.splitlines()
    assert (out / "x.gif").read_text() == (out / "x.png").read_text() == "of the other run"


def test_an_ignored_hangup_stays_ignored(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        interrupted(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGHUP))
        assert generate(model, tmp_path / "x") == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert len(list((tmp_path / "x").iterdir())) == 40


def test_an_error_in_the_middle_keeps_the_video_so_far(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full() -> None:
        raise OSError("No space left on device")

    interrupted(monkeypatch, 3, full)
    assert generate(model, tmp_path / "x") == 2
    *_, kept, error = capsys.readouterr().err.splitlines()
    assert kept == f"8 video frames are in {tmp_path / 'x'}"
    assert error == "aapt-fast generate: No space left on device"


@pytest.mark.parametrize("before_the_stream", [True, False])
def test_a_stop_before_the_first_frame_says_that_nothing_was_kept(
    model: Path,
    tmp_path: Path,
    before_the_stream: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    if before_the_stream:
        monkeypatch.setattr(generating, "StreamSession", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    else:
        interrupted(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert generate(model, out / "x.gif", "--sheet", str(out / "x.png")) == 130
    *_, kept, error = capsys.readouterr().err.splitlines()
    assert kept == "nothing was kept: no video frame was finished"
    assert error == "aapt-fast generate: stopped by SIGTERM"
    assert list(out.iterdir()) == []


def test_a_signal_after_the_last_step_says_that_all_frames_are_there(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_report = generating._report

    def stopped(*arguments: object) -> dict[str, object]:
        os.kill(os.getpid(), signal.SIGINT)
        return make_report(*arguments)

    monkeypatch.setattr(generating, "_report", stopped)
    assert generate(model, tmp_path / "x") == 130
    printed = capsys.readouterr()
    *_, kept, error = printed.err.splitlines()
    assert kept == f"all 40 video frames are in {tmp_path / 'x'}" and printed.out == ""
    assert error == "aapt-fast generate: stopped by SIGINT"


def test_a_sheet_without_room_does_not_hide_the_video(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(sheet: ContactSheet) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(ContactSheet, "write", full)
    assert generate(model, tmp_path / "x", "--sheet", str(tmp_path / "x.png")) == 2
    *_, kept, error = capsys.readouterr().err.splitlines()
    assert kept == f"40 video frames are in {tmp_path / 'x'}"
    assert error == "aapt-fast generate: No space left on device"


def test_fps_counts_writing_and_step_fps_does_not(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock, one_step, write = [0.0], FrameIterator.__next__, VideoWriter.write

    def step(videos: FrameIterator) -> torch.Tensor:
        clock[0] += 0.5
        return one_step(videos)

    def write_slowly(writer: VideoWriter, frames: torch.Tensor) -> None:
        clock[0] += 1.5
        write(writer, frames)

    monkeypatch.setattr(FrameIterator, "__next__", step)
    monkeypatch.setattr(VideoWriter, "write", write_slowly)
    monkeypatch.setattr(generating.time, "perf_counter", lambda: clock[0])
    assert generate(model, tmp_path / "x") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["fps"], report["step_fps"]) == (2.0, 8.0)


def test_a_sheet_that_cannot_be_written_does_not_hide_the_stop(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(sheet: ContactSheet) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(ContactSheet, "write_unfinished", full)
    interrupted(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert generate(model, tmp_path / "x", "--sheet", str(tmp_path / "x.png")) == 130
    *_, kept, sheet, error = capsys.readouterr().err.splitlines()
    assert (kept, sheet) == (f"8 video frames are in {tmp_path / 'x'}", "no sheet was written: No space left on device")
    assert error == "aapt-fast generate: stopped by SIGTERM"
