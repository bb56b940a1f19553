# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import sys
import time

import pytest
from bench.harness.processes import Counts, counted, run_limited


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


CASES = (
    '<testcase name="test_a[1]"/><testcase name="test_a[2]"><failure/></testcase><testcase name="test_d"/>'
    '<testcase name="test_b"><skipped/></testcase><testcase name="test_c"><error/></testcase>'
)


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        (f"<testsuites><testsuite>{CASES}</testsuite></testsuites>", Counts(passed=2, failed=2, skipped=1)),
        (f"<testsuite>{CASES}</testsuite>", Counts(passed=2, failed=2, skipped=1)),
        ("<testsuites><testsuite>", Counts(0, 1, 0)),
        (None, Counts(0, 1, 0)),
    ],
    ids=["several suites", "one suite", "cut off", "missing"],
)
def test_counts_of_a_junit_file(tmp_path, text, counts):
    path = tmp_path / "junit.xml"
    if text is not None:
        path.write_text(text)
    assert counted(path) == counts


def test_only_skipped_tests_are_not_good():
    assert not Counts(passed=0, failed=0, skipped=5).good
    assert not Counts(passed=5, failed=1, skipped=0).good
    assert Counts(passed=5, failed=0, skipped=1).good
    assert Counts(0, 0, 5).only_skipped
    assert not Counts(1, 0, 5).only_skipped and not Counts(0, 1, 5).only_skipped and not Counts(0, 0, 0).only_skipped
