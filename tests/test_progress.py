# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import sys

import pytest

from aapt_fast.progress import progress, say, without_messages


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(total: int = 300, **options: bool) -> None:
    with progress(total, "stage 1 of 3: diffusion", "step", **options) as bar:
        for _ in range(total):
            bar.update()


def test_a_terminal_shows_the_bar_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    run()
    shown = sys.stderr.getvalue()
    assert "\r" in shown and "stage 1 of 3: diffusion: 100%" in shown and "300/300" in shown and "step/s" in shown


def test_a_file_gets_no_line_of_a_short_bar(capsys: pytest.CaptureFixture[str]) -> None:
    run()
    assert capsys.readouterr() == ("", "")


def test_a_file_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter(range(0, 10**6, 7))  # every look at the clock is seven seconds later
    monkeypatch.setattr("tqdm.std.time", lambda: next(clock))
    run()
    captured = capsys.readouterr()
    lines = captured.err.split("\n")
    assert captured.out == "" and "\r" not in captured.err
    assert 5 < len([line for line in lines if line.startswith("stage 1 of 3: diffusion")]) < 60


def test_the_first_line_in_a_file_comes_before_the_first_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    with progress(100, "stream", "step") as bar:
        shown = []
        for clock[0] in (9.0, 11.0, 30.0, 70.0, 72.0):
            bar.update()
            shown.append(capsys.readouterr().err.count("stream"))
    assert shown == [0, 1, 0, 0, 1]


def test_quiet_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    run(quiet=True)
    assert sys.stderr.getvalue() == ""


def test_what_was_done_before_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress(10, "render", "clip", done=6) as bar:
        bar.update()
    assert "7/10" in sys.stderr.getvalue()


def test_messages_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    say("saved")
    assert capsys.readouterr() == ("", "saved\n")


@pytest.mark.parametrize("quiet", [True, False])
def test_messages_can_be_left_out(quiet: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with without_messages(quiet):
        say("working")
        print("result")
    assert capsys.readouterr() == ("result\n", "" if quiet else "working\n")
