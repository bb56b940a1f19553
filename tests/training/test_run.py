# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from aapt_fast.errors import CheckpointError
from aapt_fast.training.run import TrainingRun


@dataclass(frozen=True)
class Settings:
    """Of the runs below."""

    rate: float = 0.1
    width: int = 3


@dataclass(frozen=True)
class RenamedSettings:
    """The same without a width, as a later version might have it."""

    rate: float = 0.1


def walk(folder: Path, total: int, stop_at: int | None = None, settings: Settings = Settings()) -> nn.Linear:
    """A run whose every step adds random numbers to the weights; asked to stop during step `stop_at`."""
    model = nn.Linear(settings.width, 2)
    nn.init.zeros_(model.weight)
    run = TrainingRun(folder, settings, {"model": model})
    for step in run.steps(total, seed=5):
        with torch.no_grad():
            model.weight += torch.randn_like(model.weight)
        run.track(loss=model.weight.sum())
        run.log(position=float(model.weight.detach()[0, 0]))
        if step == stop_at:
            signal.raise_signal(signal.SIGTERM)
    return model


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open() as file:
        return list(csv.DictReader(file))


def without_time(table: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in table]


def test_interrupted_and_resumed_equals_straight_on(tmp_path):
    straight = walk(tmp_path / "straight", 8)
    with pytest.raises(KeyboardInterrupt, match="stopped at step 4, saved in"):
        walk(tmp_path / "resumed", 8, stop_at=3)
    resumed = walk(tmp_path / "resumed", 8)
    assert torch.equal(straight.weight, resumed.weight)
    assert without_time(rows(tmp_path / "straight")) == without_time(rows(tmp_path / "resumed"))
    assert len(rows(tmp_path / "straight")) == 8


def test_every_step_has_its_own_random_numbers(tmp_path):
    run, drawn = TrainingRun(tmp_path, Settings(), {}), []
    for _ in run.steps(5, seed=1):
        drawn.append(float(torch.rand(())))
    assert len(set(drawn)) == 5


def test_a_finished_run_takes_no_step_and_keeps_its_result(tmp_path):
    before = walk(tmp_path, 3)
    assert torch.equal(walk(tmp_path, 3).weight, before.weight)
    assert len(rows(tmp_path)) == 3


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_ours_during_steps_only(tmp_path, kind):
    before = signal.getsignal(kind)
    run = TrainingRun(tmp_path, Settings(), {})
    with pytest.raises(KeyboardInterrupt, match="stopped at step 1"):
        for _ in run.steps(5, seed=0):
            assert signal.getsignal(kind) != before
            signal.raise_signal(kind)
    assert signal.getsignal(kind) == before
    assert TrainingRun(tmp_path, Settings(), {}).step == 1


def test_a_second_signal_is_obeyed_at_once(tmp_path):
    """In the middle of a step, which may take minutes; the checkpoint is that of the step before."""
    run = TrainingRun(tmp_path, Settings(), {})
    with pytest.raises(KeyboardInterrupt, match=r"stopped in step 2; .* holds the last checkpoint"):
        for step in run.steps(5, seed=0):
            if step == 1:
                run.save()
            if step == 2:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
                pytest.fail("the step went on")
    assert TrainingRun(tmp_path, Settings(), {}).step == 1


ENDLESS = """
    import sys
    from pathlib import Path
    from aapt_fast.training.run import TrainingRun
    from test_settings import Settings
    import torch, time

    model = torch.nn.Linear(3, 2)
    run = TrainingRun(Path(sys.argv[1]), Settings(), {"model": model})
    for step in run.steps(10**9, seed=0):
        print("step", flush=True)
        time.sleep(0.01)
"""
SETTINGS = """
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Settings:
        rate: float = 0.1
        width: int = 3
"""


def test_sigterm_to_a_process_saves_and_ends_it(tmp_path):
    (tmp_path / "test_settings.py").write_text(textwrap.dedent(SETTINGS))
    (tmp_path / "endless.py").write_text(textwrap.dedent(ENDLESS))
    command = [sys.executable, str(tmp_path / "endless.py"), str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(command, env=environment, **pipes) as process:
        assert process.stdout.readline() == "step\n"
        process.terminate()
        _, errors = process.communicate(timeout=240)
    assert process.returncode != 0 and "stopped at step" in errors
    model = nn.Linear(3, 2)
    assert TrainingRun(tmp_path / "run", Settings(), {"model": model}).step >= 1


def test_a_save_that_fails_half_way_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    walk(tmp_path, 3)
    kept = (tmp_path / "checkpoint.pt").read_bytes()
    model = nn.Linear(3, 2)
    run = TrainingRun(tmp_path, Settings(), {"model": model})

    def fails(content, path):
        path.write_bytes(b"half a check")
        raise OSError("no space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(torch, "save", fails)
        run.save()
    assert (tmp_path / "checkpoint.pt").read_bytes() == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "config.json", "log.csv"]


def test_what_a_kill_during_a_save_leaves_behind_is_ignored(tmp_path):
    """kill -9 runs no clean-up: half a checkpoint lies beside the whole one."""
    expected = walk(tmp_path / "straight", 6)
    with pytest.raises(KeyboardInterrupt):
        walk(tmp_path / "killed", 6, stop_at=2)
    partial = tmp_path / "killed" / ".checkpoint.partial.pt"
    partial.write_bytes(b"half a check")
    assert torch.equal(walk(tmp_path / "killed", 6).weight, expected.weight)
    assert not partial.exists()


def test_steps_since_the_last_save_are_taken_again_and_logged_once(tmp_path):
    expected = walk(tmp_path / "straight", 6)
    with pytest.raises(KeyboardInterrupt):
        walk(tmp_path / "killed", 6, stop_at=1)
    saved = (tmp_path / "killed" / "checkpoint.pt").read_bytes()
    walk(tmp_path / "killed", 6)
    (tmp_path / "killed" / "checkpoint.pt").write_bytes(saved)  # as if killed at the end without a save
    assert torch.equal(walk(tmp_path / "killed", 6).weight, expected.weight)
    assert without_time(rows(tmp_path / "killed")) == without_time(rows(tmp_path / "straight"))


def test_saves_as_time_passes(tmp_path):
    run = TrainingRun(tmp_path, Settings(), {}, checkpoint_seconds=0)
    for step in run.steps(3, seed=0):
        assert (tmp_path / "checkpoint.pt").exists() == (step > 0)
    lazy = TrainingRun(tmp_path / "lazy", Settings(), {}, checkpoint_seconds=1000)
    for _ in lazy.steps(3, seed=0):
        assert not (tmp_path / "lazy" / "checkpoint.pt").exists()
    assert (tmp_path / "lazy" / "checkpoint.pt").exists()


def test_training_time_adds_up_over_sessions(tmp_path):
    first = TrainingRun(tmp_path, Settings(), {})
    first._started -= 100
    first.save()
    assert 100 <= TrainingRun(tmp_path, Settings(), {}).seconds < 160


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path, value):
    run = TrainingRun(tmp_path, Settings(), {}, checkpoint_seconds=0)
    with pytest.raises(FloatingPointError, match=rf"critic is {value} at step 2 .*intact"):
        for step in run.steps(5, seed=0):
            run.track(loss=torch.tensor(1.0), critic=torch.tensor(value if step == 2 else 1.0))
    assert TrainingRun(tmp_path, Settings(), {}).step == 2  # the step that failed is taken again


def test_losses_are_averaged_and_the_average_is_resumed(tmp_path):
    run = TrainingRun(tmp_path, Settings(), {})
    for step in run.steps(2, seed=0):
        run.track(loss=torch.tensor(10.0 * step))
    resumed = TrainingRun(tmp_path, Settings(), {})
    resumed.log(psnr=30.0)
    assert rows(tmp_path) == [{"step": "2", "seconds": "0", "loss": "0.3", "psnr": "30.0"}]  # 0.97 * 0 + 0.03 * 10


def test_the_log_takes_new_columns(tmp_path):
    run = TrainingRun(tmp_path, Settings(), {})
    for step in run.steps(2, seed=0):
        run.log(**({"psnr": 30.0} if step == 0 else {"critic": 0.5}))
    assert [(row["psnr"], row["critic"]) for row in rows(tmp_path)] == [("30.0", ""), ("", "0.5")]


@pytest.mark.parametrize(
    ("settings", "names"),
    [(Settings(rate=0.2), "rate"), (Settings(rate=0.2, width=4), "rate, width"), (RenamedSettings(), "width")],
    ids=["one changed", "two changed", "one gone"],
)
def test_another_configuration_is_refused_by_name(tmp_path, settings, names):
    walk(tmp_path, 2)
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(ValueError, match=f"^{names}: expected the values in .*config.json, got others"):
        TrainingRun(tmp_path, settings, {})
    assert (tmp_path / "config.json").read_text() == before


@dataclass(frozen=True)
class NewerSettings:
    """The same inside another, with fields that earlier versions did not have."""

    inner: Settings
    depths: tuple[int, ...] = (1, 2)
    other: Settings = Settings()


def test_a_field_that_is_newer_than_the_folder_counts_as_its_default(tmp_path):
    """So that a run goes on under a later version; but only with the default, which is what the run has done so far."""
    (tmp_path / "config.json").write_text(json.dumps({"inner": {"rate": 0.1}}))
    TrainingRun(tmp_path, NewerSettings(Settings()), {})
    for newer, names in (
        (NewerSettings(Settings(width=4)), "inner"),
        (NewerSettings(Settings(), depths=(1,)), "depths"),
        (NewerSettings(Settings(), other=Settings(rate=0.2)), "other"),
    ):
        with pytest.raises(ValueError, match=f"^{names}: expected the values in"):
            TrainingRun(tmp_path, newer, {})


@pytest.mark.parametrize("damage", ["cut short", "empty", "not a checkpoint", "without a part", "of another shape"])
def test_a_checkpoint_that_does_not_fit_is_named(tmp_path, damage):
    walk(tmp_path, 2)
    path = tmp_path / "checkpoint.pt"
    if damage == "cut short":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "not a checkpoint":
        torch.save({"epoch": 3}, path)
    parts = {"model": nn.Linear(3, 5 if damage == "of another shape" else 2)}
    if damage == "without a part":
        parts["critic"] = nn.Linear(1, 1)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: expected a readable checkpoint of this training"):
        TrainingRun(tmp_path, Settings(), parts)
