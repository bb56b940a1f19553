# SPDX-License-Identifier: Apache-2.0
"""The command line: `aapt-fast generate | doctor | serve | verify | train | evaluate | bench | convert`.

options.py has the options of all commands, checks.py finds the mistakes that need no torch, and each command has a file
of its own, imported when it is called.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Sequence
from types import ModuleType

from aapt_fast.atomic import NO_ROOM
from aapt_fast.cli.checks import check
from aapt_fast.cli.option_names import name_options
from aapt_fast.cli.options import make_parser
from aapt_fast.cli.signals import HeldSignals, handlers_restored, ignore_signals
from aapt_fast.errors import PoolExhausted, RankFailed, RankHung, import_with_torch

USER_ERRORS = (ValueError, TypeError, OSError, ImportError, FloatingPointError, PoolExhausted, RankFailed, RankHung)
STREAMING_COMMANDS = ("generate", "doctor", "bench")
IDLE_SPINS = "1000"
OUTPUT_CLOSED = 141
"""Exit status of a command whose reader has gone, as a shell reports SIGPIPE."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; a user's mistake becomes one line on stderr and exit status 2, a signal status 130.

    A command that returns a number has that as its status, the others 0.
    """
    with handlers_restored():
        return _status(argv)


def program() -> int:
    """Run the command of this process, which ends after it: from then on signals change neither status nor output."""
    status = _status(None)
    ignore_signals()
    return status


def _status(argv: Sequence[str] | None) -> int:
    try:
        try:
            arguments = make_parser().parse_args(argv)
            arguments.argv = list(sys.argv[1:] if argv is None else argv)
            return _run(arguments)
        finally:
            if sys.stdout is not None:  # it is None where the caller has closed it
                sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        return OUTPUT_CLOSED
    except OSError as error:  # of the output: all others have been reported
        _drop_output()
        _report("", f"the output cannot be written: {error.strerror}")
        return 2


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command in STREAMING_COMMANDS:
        _let_idle_threads_sleep()
    try:
        with HeldSignals() as signals, signals.let_in():
            return _import(arguments).run(arguments) or 0
    except BrokenPipeError:
        raise
    except USER_ERRORS as error:
        if _is_of_the_output(error):
            raise
        _report(arguments.command, name_options(str(error), arguments))
        return 2
    except KeyboardInterrupt as stop:
        _report(arguments.command, str(stop) or "stopped")
        return 130


def _is_of_the_output(error: BaseException) -> bool:
    """True for the error of a print: the system's, without a name, which `atomic.naming` gives those of files."""
    return isinstance(error, OSError) and error.errno in NO_ROOM and bool(error.strerror) and error.filename is None


def _drop_output() -> None:
    """Send the rest of the output nowhere: the interpreter flushes once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _import(arguments: argparse.Namespace) -> ModuleType:
    """The module of a command whose arguments have passed the checks without torch."""
    try:
        check(arguments)
        return import_with_torch(f"aapt_fast.cli.{arguments.command}")
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"{stop}; no file was written") from None


def _report(command: str, message: str) -> None:
    """Print a line on stderr, if that still has a reader: a terminal may have gone.

    Of several ranks with the same mistake, number 0 reports it; the others give it the time, since the first one that
    ends takes all others along.
    """
    if os.environ.get("RANK", "0") != "0":
        time.sleep(2)
        return
    with contextlib.suppress(OSError):
        print(f"{f'aapt-fast {command}'.rstrip()}: {message}", file=sys.stderr)


def _let_idle_threads_sleep() -> None:
    """Make OpenMP threads that wait for work sleep after a few microseconds, unless the user has chosen otherwise.

    By default they spin for milliseconds, in which another process on the same cores cannot run, nor the thread that
    they wait for. Takes effect only before torch is imported. bench/bench_busy.py measures it.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = IDLE_SPINS
