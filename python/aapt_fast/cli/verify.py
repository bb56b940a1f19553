# SPDX-License-Identifier: Apache-2.0
"""Try the kernels on this GPU, time them against torch, and remember which ones are right and fast."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from aapt_fast.cli.doctor import examine
from aapt_fast.cli.signals import HeldSignals, Stopped
from aapt_fast.ops.kernels import selection
from aapt_fast.profiling.document import Document
from aapt_fast.progress import say
from aapt_fast.verification.report import Report
from aapt_fast.verification.runner import verify

PASSED, WRONG = 0, 1
KEPT = "the kernels that were done are recorded, the others stay as they were"


def run(arguments: argparse.Namespace) -> int:
    """Verify and report; returns the exit status."""
    chosen = selection().names
    names = None if arguments.kernels is None else arguments.kernels.split(",")
    with HeldSignals() as signals:
        try:
            with signals.let_in():
                report = verify(names, shapes=arguments.shapes, tell=say)
        except Stopped as stop:
            raise Stopped(f"{stop}; {KEPT}") from stop
        print(report.table())
        print()
        print(report.in_words())
        if chosen != ("auto",):
            print(f"AAPT_KERNELS={','.join(chosen)} decides now; the record counts without it.")
        if arguments.json is not None:
            write(arguments.json, report)
        elif not report.passed:
            print("Please send the maintainers the file that `aapt-fast verify --json FILE` writes.")
    return PASSED if report.passed else WRONG


def write(path: Path, report: Report) -> None:
    """Write everything that a maintainer needs into one file: machine, build, findings with tracebacks, record."""
    document = Document.new(shlex.join(["aapt-fast", *sys.argv[1:]]))
    document.set(doctor=examine(), verified=report.as_dict())
    document.path = path
    document.save()
    print(f"Everything that a maintainer needs is in {path}.")
