# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from aapt_fast.errors import CheckpointError
from aapt_fast.training.ema import WeightAverage
from aapt_fast.training.optimiser import descend
from aapt_fast.training.run import TrainingRun, Watch, on_disk, steps_on_disk


@dataclass(frozen=True)
class Settings:
    """Of the runs below."""

    rate: float = 0.1
    width: int = 3


@dataclass(frozen=True)
class RenamedSettings:
    """The same without a width, as a later version might have it."""

    rate: float = 0.1


def watch(stops: Sequence[object]) -> Watch:
    """A watch that stops the run once something is in the list `stops`."""
    return Watch("a run", lambda: nullcontext(lambda: bool(stops)))


def walk(folder: Path, total: int, stop_at: int | None = None, settings: Settings = Settings()) -> nn.Linear:
    """A run whose every step adds random numbers to the weights; its watch stops it during step `stop_at`."""
    model, stops = nn.Linear(settings.width, 2), []
    nn.init.zeros_(model.weight)
    run = TrainingRun(folder, settings, {"model": model}, watch=watch(stops))
    for step in run.steps(total, seed=5):
        with torch.no_grad():
            model.weight += torch.randn_like(model.weight)
        run.track(loss=model.weight.sum())
        run.log(position=float(model.weight.detach()[0, 0]))
        if step == stop_at:
            stops.append("stop")
    return model


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open() as file:
        return list(csv.DictReader(file))


def without_time(table: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in table]


def test_interrupted_and_resumed_equals_straight_on(tmp_path):
    straight = walk(tmp_path / "straight", 8)
    with pytest.raises(
        KeyboardInterrupt, match=r"stopped after step 4 of 8; .*checkpoint\.pt holds the state after step 4, all finite"
    ):
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


def test_a_run_installs_no_signal_handlers(tmp_path):
    before = {kind: signal.getsignal(kind) for kind in signal.valid_signals()}
    for _ in TrainingRun(tmp_path, Settings(), {}).steps(1, seed=0):
        assert {kind: signal.getsignal(kind) for kind in signal.valid_signals()} == before


def test_an_interruption_in_the_middle_of_a_step_keeps_the_last_checkpoint(tmp_path):
    run = TrainingRun(tmp_path, Settings(), {})
    with pytest.raises(KeyboardInterrupt):
        for step in run.steps(5, seed=0):
            if step == 1:
                run.save()
            if step == 2:
                raise KeyboardInterrupt
    assert TrainingRun(tmp_path, Settings(), {}).step == 1


ENDLESS = """
    import sys
    from pathlib import Path
    from aapt_fast.cli.signals import HeldSignals
    from aapt_fast.training.run import TrainingRun, Watch
    from test_settings import Settings
    import torch, time

    model = torch.nn.Linear(3, 2)
    with HeldSignals() as signals, signals.let_in():
        watch = Watch("endless", signals.hold)
        run = TrainingRun(Path(sys.argv[1]), Settings(), {"model": model}, watch=watch)
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
    assert process.returncode != 0 and "stopped after step" in errors and "stopping after this step" in errors
    model = nn.Linear(3, 2)
    assert TrainingRun(tmp_path / "run", Settings(), {"model": model}).step >= 1


def test_a_save_that_fails_half_way_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    walk(tmp_path, 3)
    kept = (tmp_path / "checkpoint.pt").read_bytes()
    model = nn.Linear(3, 2)
    run = TrainingRun(tmp_path, Settings(), {"model": model})

    def fails(content, file):
        file.write(b"half a check")
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
    partial = tmp_path / "killed" / ".checkpoint.partial-0a1b2c3d.pt"
    partial.write_bytes(b"half a check")
    assert torch.equal(walk(tmp_path / "killed", 6).weight, expected.weight)
    names = [partial.name, "checkpoint.pt", "config.json", "log.csv"]
    assert sorted(path.name for path in partial.parent.iterdir()) == names


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
    expected = rf"critic is {value} at step 2 .*checkpoint\.pt holds the state after step 2, all finite"
    with pytest.raises(FloatingPointError, match=expected):
        for step in run.steps(5, seed=0):
            run.track(loss=torch.tensor(1.0), critic=torch.tensor(value if step == 2 else 1.0))
    assert TrainingRun(tmp_path, Settings(), {}).step == 2  # the step that failed is taken again


def poisoned(run: TrainingRun, model: nn.Module, checked: bool) -> None:
    """Three steps; the loss of the second is finite and its gradient is not: the root has none at 0."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in run.steps(3, seed=0):
        y = model(torch.ones(1, 3)).square().sum()
        if step == 1:
            y = y * 0 + torch.sqrt((model(torch.ones(1, 3)) * 0).square().sum())
        run.track(loss=y)
        y.backward()
        if checked:
            descend(model, optimiser, 1.0)
        else:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()


def test_a_gradient_that_is_not_finite_moves_nothing(tmp_path):
    model = nn.Linear(3, 2)
    run = TrainingRun(tmp_path, Settings(), {"model": model}, checkpoint_seconds=0)
    with pytest.raises(FloatingPointError, match="the gradient of weight is not finite"):
        poisoned(run, model, checked=True)
    kept = nn.Linear(3, 2)
    assert TrainingRun(tmp_path, Settings(), {"model": kept}).step == 1
    assert torch.equal(kept.weight, model.weight) and bool(model.weight.isfinite().all())


@pytest.mark.parametrize("seconds", [0, 60], ids=["saved in between", "not saved in between"])
def test_bad_weights_never_replace_a_checkpoint(tmp_path, seconds):
    """By a loop that checks no gradient itself; the message says what is on the disk, which was read."""
    model = nn.Linear(3, 2)
    run = TrainingRun(tmp_path, Settings(), {"model": model}, checkpoint_seconds=seconds)
    run.save()
    where = 1 if seconds == 0 else 0
    with pytest.raises(FloatingPointError, match=rf"holds the state after step {where}, all finite"):
        poisoned(run, model, checked=False)
    assert steps_on_disk(tmp_path) == where
    assert bool(torch.load(tmp_path / "checkpoint.pt", weights_only=True)["state"]["model"]["weight"].isfinite().all())


@pytest.mark.parametrize("part", ["weight", "average", "optimiser"])
def test_a_save_names_what_is_not_finite(tmp_path, part):
    model = nn.Linear(3, 2)
    average, optimiser = WeightAverage(model), torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    state = {"model": model, "average": average, "optimiser": optimiser}
    run = TrainingRun(tmp_path, Settings(), state)
    run.save()
    kept = (tmp_path / "checkpoint.pt").read_bytes()
    bad = {
        "weight": ("state.model.weight", model.weight),
        "average": ("state.average.weight", average.average["weight"]),
        "optimiser": ("state.optimiser.state.0.exp_avg_sq", optimiser.state[model.weight]["exp_avg_sq"]),
    }
    name, tensor = bad[part]
    tensor.data[0, 0] = torch.inf
    with pytest.raises(
        FloatingPointError, match=rf"^{name} is not finite, so it was not saved in .* after step 0, all"
    ):
        run.save()
    assert (tmp_path / "checkpoint.pt").read_bytes() == kept


@pytest.mark.parametrize("last", [True, False], ids=["at the last step", "when stopped"])
def test_a_bad_last_step_is_an_error_and_not_a_success(tmp_path, last):
    model, stops = nn.Linear(3, 2), []
    run = TrainingRun(tmp_path, Settings(), {"model": model}, watch=watch(stops))
    with pytest.raises(FloatingPointError, match=r"state.model.bias is not finite, .* has no checkpoint"):
        for step in run.steps(1 if last else 9, seed=0):
            model.bias.data[0] = torch.nan
            stops.append(step)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_checkpoint_of_an_older_version_may_be_bad_and_is_refused(tmp_path):
    walk(tmp_path, 2)
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    content["state"]["model"]["weight"][1, 1] = torch.nan
    torch.save(content, tmp_path / "checkpoint.pt")
    message = r"checkpoint\.pt: state\.model\.weight: expected finite values, got nan or inf"
    with pytest.raises(CheckpointError, match=message):
        TrainingRun(tmp_path, Settings(), {"model": nn.Linear(3, 2)})
    assert "expected finite values" in on_disk(tmp_path)


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
    whole = r"a whole file of this training, got a damaged one \(\w+\)"
    own = r"a checkpoint of this training, got another one \(\w+\)"
    shape = r"shape \[5, 3\], got \[2, 3\] \(and 1 more with other shapes\)"
    message = (
        rf"^\S+checkpoint\.pt: (weight: )?expected ({whole}|{own}|{shape}); remove it, and the stage begins again$"
    )
    with pytest.raises(CheckpointError, match=message):
        TrainingRun(tmp_path, Settings(), parts)
    if damage in ("cut short", "empty", "not a checkpoint"):
        with pytest.raises(CheckpointError, match=message):
            steps_on_disk(tmp_path)
