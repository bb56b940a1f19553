# SPDX-License-Identifier: Apache-2.0
"""The first tenth of a second: help, the version and mistakes come without torch, and a closed pipe is no error."""

from __future__ import annotations

import argparse
import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import aapt_fast
from aapt_fast.__main__ import program
from aapt_fast.cli import OUTPUT_CLOSED, main
from aapt_fast.cli.options import COMMANDS
from aapt_fast.cli.signals import handlers_restored

WITHOUT_TORCH = """
import sys
from aapt_fast.cli import main
try:
    status = main(sys.argv[1:])
except SystemExit as stop:
    status = stop.code
assert "torch" not in sys.modules
sys.exit(status)
"""


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["bench", "frame", "--help"], ["--version"]])
def test_help_and_version_need_no_torch(arguments: list[str]) -> None:
    done = start(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", ": the following arguments are required: command"),
        ("generat", ": command: invalid choice: 'generat'"),
        ("generate", " generate: the following arguments are required: --out"),
        ("train persons --out x", " train: recipe: invalid choice: 'persons'"),
        ("generate --out x --frames x", " generate: --frames: expected an integer, got x"),
        ("generate --out x --dtype int8", " generate: --dtype: invalid choice: 'int8'"),
        ("bench frame --target soon", " bench frame: --target: expected a number, got soon"),
        ("generate --out x --loud", " generate: expected options of aapt-fast generate, got --loud"),
        ("convert mini-person --out x more", " convert: expected options of aapt-fast convert, got more"),
        ("--loud", ": the following arguments are required: command"),
        ("bench", " bench: the following arguments are required: all"),
        (
            "train persn --out x",
            " train: recipe: invalid choice: 'persn', did you mean person? (choose from person, any",
        ),
        ("generate --out x.mp4/", " generate: --out: expected a file without a slash at its end, or a folder without"),
        (
            "generate --out x.gif --sheet x.png/",
            " generate: --sheet: expected a file, got x.png/, which names a folder",
        ),
        ("generate --out -", " generate: --out: expected a file or folder, got -; ./- is a"),
        ("generate --out x.gif --sheet -", " generate: --sheet: expected a file or folder, got -; ./- is a"),
        ("train person --out -", " train: --out: expected a file or folder, got -; ./- is a"),
        ("bench frame --json -", " bench frame: --json: expected a file or folder, got -; ./- is a"),
    ],
)
def test_options_that_cannot_be_read_are_one_line(
    line: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(line.split())
    command = said.partition(":")[0]
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith(f"aapt-fast{said}"), printed.err
    assert printed.err.endswith(f"; see aapt-fast{command} --help\n") and printed.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_options_that_cannot_be_read_need_no_torch() -> None:
    done = start("generate", "--frames", "x")
    assert done.returncode == 2 and done.stderr.startswith("aapt-fast generate: --frames: expected"), done.stderr


EARLY = """
import os, signal, sys
class Interrupt:
    def find_spec(self, name, *_):
        if name == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupt())
from aapt_fast.__main__ import program
sys.exit(program())
"""


@pytest.mark.parametrize("module", ["aapt_fast.cli", "aapt_fast.models.files.recognise"])
def test_ctrl_c_during_the_imports_says_nothing(module: str) -> None:
    done = subprocess.run([sys.executable, "-c", EARLY, module], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_ctrl_c_while_the_arguments_are_read_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("aapt_fast.cli.make_parser", lambda: signal.raise_signal(signal.SIGINT))
    with handlers_restored():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        assert program() == 130
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    assert capsys.readouterr() == ("", "")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"aapt-fast {aapt_fast.__version__}\n"


WITHOUT_DEFAULT = {"--out", "--data", "--controls", "--sheet", "--row", "--config", "--json"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_tells_every_default(command: str) -> None:
    parser = argparse.ArgumentParser()
    COMMANDS[command][1](parser)
    if parser._subparsers is not None:
        parser = parser._subparsers._group_actions[0].choices["frame"]
    for option in parser._actions:
        takes_a_value = option.nargs != 0 and option.option_strings and option.option_strings[0] not in WITHOUT_DEFAULT
        assert not takes_a_value or "default" in option.help, option.option_strings


FACTS = """
import sys, types
sys.modules["aapt_fast.cli.doctor"] = types.SimpleNamespace(run=lambda _: print("facts"))
from aapt_fast.cli import program
sys.exit(program())
"""


@pytest.mark.parametrize(
    ("arguments", "statuses"),
    [(["doctor"], {OUTPUT_CLOSED}), (["--help"], {0, OUTPUT_CLOSED})],  # argparse hides that it cannot write
)
def test_a_reader_that_goes_away_is_no_error(arguments: list[str], statuses: set[int]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", FACTS, *arguments], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.returncode in statuses and done.stderr == ""


FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.is_char_device(), reason="no /dev/full on this system")
@pytest.mark.parametrize("arguments", ["--version", "doctor"])
def test_an_output_without_room_is_one_line(arguments: str) -> None:
    with FULL.open("w") as full:
        command = [sys.executable, "-c", FACTS, arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "aapt-fast: the output cannot be written: No space left on device\n")


def test_a_closed_output_changes_no_status(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdout", None)  # as Python has it after `>&-`
    assert main(["convert", "no-such-model", "--out", "x"]) == 2
    assert "no-such-model" in capsys.readouterr().err


def test_a_terminal_that_goes_away_changes_no_status(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Gone())
    assert main(["convert", "no-such-model", "--out", "x"]) == 2


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_torch_is_there_ends_the_command(
    kind: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(kind)
    monkeypatch.setattr("aapt_fast.cli.check", lambda _: signal.raise_signal(kind))
    assert main(["doctor"]) == 130
    assert capsys.readouterr() == ("", f"aapt-fast doctor: stopped by {kind.name}; no file was written\n")
    assert signal.getsignal(kind) is before


SECOND_SIGNALS = """
import atexit, os, signal, sys, types
def send(*kinds):
    for kind in kinds:
        os.kill(os.getpid(), kind)
def run(_):
    try:
        send(signal.SIGINT)
    finally:
        send(signal.SIGTERM, signal.SIGINT)
        print("finished", file=sys.stderr)
atexit.register(send, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.modules["aapt_fast.cli.doctor"] = types.SimpleNamespace(run=run)
sys.argv[1:] = ["doctor"]
from aapt_fast.cli import program
sys.exit(program())
"""


def test_more_signals_change_neither_the_status_nor_the_message() -> None:
    done = subprocess.run([sys.executable, "-c", SECOND_SIGNALS], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "finished\naapt-fast doctor: stopped by SIGINT\n")


SPINS = """
import os, sys, types
stand_in = types.SimpleNamespace(run=lambda _: print(os.environ.get("GOMP_SPINCOUNT")))
sys.modules[f"aapt_fast.cli.{sys.argv[1]}"] = stand_in
from aapt_fast.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("arguments", "variables", "expected"),
    [
        ("generate --out x", {}, "1000"),
        ("bench frame --preset nano", {}, "1000"),
        ("generate --out x", {"GOMP_SPINCOUNT": "7"}, "7"),
        ("generate --out x", {"OMP_WAIT_POLICY": "active"}, "None"),
    ],
)
def test_idle_threads_sleep_unless_the_user_says_otherwise(
    arguments: str, variables: dict[str, str], expected: str
) -> None:
    without = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, "-c", SPINS, *arguments.split()]
    done = subprocess.run(command, env=without | variables, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected
