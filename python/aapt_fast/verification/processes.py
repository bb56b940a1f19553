# SPDX-License-Identifier: Apache-2.0
"""Child processes that cannot outlast their time: a GPU kernel that hangs takes its process along, nothing else."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

KILL_S = 5.0
"""Seconds between SIGTERM and SIGKILL to a process group, and again until it is given up."""

_running: set[subprocess.Popen] = set()


@dataclass(frozen=True)
class Outcome:
    """The end of a process."""

    status: str  # passed, failed or ran out of time
    returncode: int | None  # None: it had to be ended, or could not be
    seconds: float
    output: str


def run_limited(
    command: Sequence[str], limit_s: float, *, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> Outcome:
    """Run a command in a process group of its own, which is ended after `limit_s` seconds.

    `environment` is added to this process's. Output and errors come back together, also when time ran out.
    """
    begun = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            start_new_session=True,
        )
        _running.add(process)
        try:
            returncode: int | None = process.wait(limit_s)
            status = "passed" if returncode == 0 else "failed"
        except subprocess.TimeoutExpired:
            returncode, status = None, "ran out of time"
        finally:
            _end_group(process)
            _running.discard(process)
        output.seek(0)
        text = output.read().decode(errors="replace")
    return Outcome(status, returncode, time.monotonic() - begun, text)


def end_all() -> None:
    """End every process that `run_limited` waits for, in any thread."""
    for process in list(_running):
        _end_group(process)


def _end_group(process: subprocess.Popen) -> None:
    """End the rest of the process's group, first with SIGTERM. A process stuck in a driver may survive both."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(KILL_S)
            if number == signal.SIGTERM and not _group_lives(process.pid):
                return


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
