# SPDX-License-Identifier: Apache-2.0
"""Progress bars and messages, both on stderr, so that stdout is left to results."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext, redirect_stderr
from io import StringIO
from typing import Any, TextIO

from tqdm import tqdm

FIRST_LOG_SECONDS = 10.0  # before the first line of a bar in a file
LOG_SECONDS = 60.0  # between two lines


def progress(total: int, name: str, unit: str, *, done: int = 0, quiet: bool = False) -> Any:
    """Make a bar of tqdm, a context manager with `update`: `name`, then `total` of `unit`, `done` of them before.

    On a terminal it moves in place. Where stderr is a file it writes a line after ten seconds, then one per minute, and
    none if all is done before. With `quiet` it writes nothing.
    """
    options = {"total": total, "initial": done, "desc": name, "unit": unit, "disable": quiet, "dynamic_ncols": True}
    if sys.stderr.isatty():
        return tqdm(file=sys.stderr, mininterval=0.5, **options)
    first = FIRST_LOG_SECONDS
    return _LogBar(file=_Lines(sys.stderr), miniters=1, mininterval=first, delay=first, **options)


def say(text: str) -> None:
    """Write a line to stderr, above a bar if there is one."""
    tqdm.write(text, file=sys.stderr)


def without_messages(quiet: bool) -> AbstractContextManager[object]:
    """Context in which bars and messages go nowhere, if `quiet`; an error that leaves it is reported as ever."""
    return redirect_stderr(StringIO()) if quiet else nullcontext()


class _LogBar(tqdm):  # type: ignore[type-arg]
    """A bar that takes its time after its first line."""

    def display(self, *arguments: Any, **options: Any) -> None:
        super().display(*arguments, **options)
        self.mininterval = LOG_SECONDS


class _Lines:
    """A file in which a new state of a bar begins a new line, instead of returning to the start of the old one."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        self._file.write(text.replace("\r", "\n"))

    def flush(self) -> None:
        self._file.flush()
