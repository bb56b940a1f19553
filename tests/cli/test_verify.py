# SPDX-License-Identifier: Apache-2.0
"""`aapt-fast verify` as a user types it; the runs themselves are in tests/verification."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from aapt_fast.cli import main
from aapt_fast.cli import verify as command
from aapt_fast.models.files.bundled import bundled_models
from aapt_fast.ops.kernels import use_kernels
from aapt_fast.ops.record import Identity, Record
from aapt_fast.verification.one_kernel import Finding, Timing
from aapt_fast.verification.report import Report

GPU = Identity("NVIDIA H200", "9.0", "580.65.06", "a build")
NAME = "kv_write/portable"
RIGHT = Finding(NAME, 2.0, 7, timings=(Timing("1x2/bf16", {NAME: 1.0, "eager": 3.0}, "eager", 3.0),))
WRONG = Finding(NAME, 2.0, 3, fault="output 0: expected 1, got 2", details="Traceback ...")
WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


def finds(finding: Finding) -> Callable[..., Report]:
    """A `verify` that has this finding about one kernel."""

    def verify(names: list[str] | None, *, shapes: str | None, tell: Callable[[str], None]) -> Report:
        tell(f"1/1 {NAME}: kernels {names}, shapes {shapes}")
        record = Record(GPU, {NAME: finding.verified()}, "2.13", "2026-11-30T12:00:00+00:00")
        return Report((finding,), record, Path("/cache/record.json"), {})

    return verify


def test_it_ends_in_words_with_the_progress_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "verify", finds(RIGHT))
    assert main(["verify", "--kernels", f"{NAME},philox_normal/portable", "--shapes", "nano"]) == 0
    printed = capsys.readouterr()
    assert printed.err == f"1/1 {NAME}: kernels ['{NAME}', 'philox_normal/portable'], shapes nano\n"
    assert f"\nOn for this NVIDIA H200 from now on: {NAME}.\n" in printed.out
    assert printed.out.endswith("\nRecorded in /cache/record.json.\n")


def test_a_bundled_model_and_a_file_have_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "verify", finds(RIGHT))
    for name in ("mini-anyone", str(bundled_models()["mini-anyone"])):
        assert main(["verify", "--shapes", name]) == 0
        assert capsys.readouterr().err.endswith(f"shapes {name}\n")


def test_a_wrong_kernel_is_status_1_and_asks_for_the_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "verify", finds(WRONG))
    assert main(["verify"]) == 1
    printed = capsys.readouterr().out
    assert f"Off: {NAME}: it failed on this GPU: output 0: expected 1, got 2." in printed
    assert "`aapt-fast verify --json FILE`" in printed.splitlines()[-1]


def test_one_file_has_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "verify", finds(WRONG))
    assert main(["verify", "--json", str(tmp_path / "verify.json")]) == 1
    content = json.loads((tmp_path / "verify.json").read_text())
    assert {"gpu", "driver", "torch", "commit"} <= set(content) and "build" in content["doctor"]
    assert content["verified"]["kernels"][0]["details"] == "Traceback ..."
    assert content["verified"]["record"]["identity"]["driver"] == GPU.driver
    assert "verify.json" in capsys.readouterr().out.splitlines()[-1]


def test_it_says_when_the_user_has_chosen_otherwise(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "verify", finds(RIGHT))
    with use_kernels("none"):
        assert main(["verify"]) == 0
    assert "AAPT_KERNELS=none decides now" in capsys.readouterr().out


@WITHOUT_GPU
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "this machine: expected a GPU, on which the kernels are to run, and a torch with CUDA, got none"),
        (["--kernels", "kv_write"], "kernels: expected some of channel_concat/portable, "),
        (["--kernels", ""], "kernels: expected some of channel_concat/portable, "),
        (
            ["--shapes", "huge"],
            "--shapes: expected a preset (aapt-8b, mini-person, nano, nano-text), a bundled model (",
        ),
        (["--shapes", "FILE"], "FILE: expected a model of this package, as train's stage export writes it, got "),
        (["--shapes", ""], "--shapes: expected a name, a file or a folder, got an empty text"),
        (["--json", "FILE/verify.json"], "--json: expected a folder that exists, got FILE, "),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Path("FILE").touch()
    assert main(["verify", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("aapt-fast verify: ") and message in line
    assert [path.name for path in tmp_path.iterdir()] == ["FILE"]


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_says_what_is_kept(
    kind: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object, **__: object) -> Report:
        os.kill(os.getpid(), kind)
        raise AssertionError("the signal comes first")

    monkeypatch.setattr(command, "verify", stopped)
    assert main(["verify", "--json", str(tmp_path / "verify.json")]) == 130
    (line,) = capsys.readouterr().err.splitlines()
    kept = "the kernels that were done are recorded, the others stay as they were"
    assert line == f"aapt-fast verify: stopped by {kind.name}; {kept}"
    assert list(tmp_path.iterdir()) == []
