# SPDX-License-Identifier: Apache-2.0
"""The command line: `aapt-fast generate | doctor | train | evaluate | bench | convert`. One file per command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from aapt_fast.cli import bench, convert, doctor, evaluate, generate, train
from aapt_fast.errors import CheckpointError, PoolExhausted

COMMANDS = {
    "generate": generate,
    "doctor": doctor,
    "train": train,
    "evaluate": evaluate,
    "bench": bench,
    "convert": convert,
}
USER_ERRORS = (ValueError, TypeError, OSError, ImportError, CheckpointError, PoolExhausted, FloatingPointError)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    root = argparse.ArgumentParser(prog="aapt-fast", description="Real-time, controllable, streaming video generation.")
    commands = root.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or "").strip().splitlines()[0]
        command = commands.add_parser(name, help=summary, description=summary)
        module.add_arguments(command)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; a user's mistake becomes one line on stderr and exit status 2, Ctrl-C status 130.

    A command that returns a number has that as its status, the others 0.
    """
    arguments = parser().parse_args(argv)
    try:
        status = COMMANDS[arguments.command].run(arguments)
    except USER_ERRORS as error:
        print(f"aapt-fast {arguments.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"aapt-fast {arguments.command}: {str(stop) or 'stopped'}", file=sys.stderr)
        return 130
    return status or 0
