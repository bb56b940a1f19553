# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import sys
import time

import pytest

from aapt_fast.verification.processes import run_limited


def program(source: str) -> list[str]:
    return [sys.executable, "-c", source]


def test_output_status_and_environment():
    source = "import os, sys; print(os.environ['WORD']); print('error', file=sys.stderr); sys.exit(4)"
    outcome = run_limited(program(source), 30, environment={"WORD": "hello"})
    assert (outcome.status, outcome.returncode) == ("failed", 4)
    assert set(outcome.output.split()) == {"hello", "error"}
    assert run_limited(program("pass"), 30).status == "passed"


def test_a_process_that_hangs_is_ended_with_its_children_and_keeps_its_output():
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    source = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)"
    )
    outcome = run_limited(program(source), 2)
    assert (outcome.status, outcome.returncode) == ("ran out of time", None)
    assert outcome.seconds < 20
    gone = int(outcome.output)
    for _ in range(50):
        try:
            os.kill(gone, 0)
            with open(f"/proc/{gone}/stat") as file:
                if file.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return  # orphans are not reaped here, but it has ended
        except (ProcessLookupError, FileNotFoundError):
            return
        time.sleep(0.1)
    pytest.fail("the child outlived its parent")
