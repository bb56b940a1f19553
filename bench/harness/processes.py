# SPDX-License-Identifier: Apache-2.0
"""Ends of the processes of bench/: counts of tests, and an exit status."""

from __future__ import annotations

import xml.etree.ElementTree
from dataclasses import dataclass
from pathlib import Path

WRONG_KERNEL = 4
"""Exit status of bench.bench_kernels if everything was done, but a kernel failed or disagreed with its baselines."""


@dataclass(frozen=True)
class Counts:
    """Numbers of tests in a JUnit file of pytest."""

    passed: int
    failed: int
    skipped: int

    @property
    def good(self) -> bool:
        """True if something ran and nothing failed."""
        return self.passed > 0 and self.failed == 0

    @property
    def only_skipped(self) -> bool:
        """True if there are tests, but none for this machine."""
        return self.skipped > 0 and self.passed == self.failed == 0


def counted(junit: Path) -> Counts:
    """Count the tests in a JUnit file; a missing or cut off file counts as a failure."""
    try:
        cases = list(xml.etree.ElementTree.parse(junit).getroot().iter("testcase"))
    except (OSError, xml.etree.ElementTree.ParseError):
        return Counts(0, 1, 0)
    failed = sum(case.find("failure") is not None or case.find("error") is not None for case in cases)
    skipped = sum(case.find("skipped") is not None for case in cases)
    return Counts(len(cases) - failed - skipped, failed, skipped)
