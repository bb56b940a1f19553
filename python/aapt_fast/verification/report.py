# SPDX-License-Identifier: Apache-2.0
"""The report of a run of `aapt-fast verify`, as a table, in words and for JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aapt_fast.ops import KERNELS
from aapt_fast.ops.record import Record
from aapt_fast.verification.one_kernel import Finding

COLUMNS = ("kernel", "results", "shape", "ms", "torch ms", "times as fast", "torch's best")


@dataclass(frozen=True)
class Report:
    """Findings about the kernels that were tried, and what follows for all of them."""

    findings: tuple[Finding, ...]
    record: Record
    """The record after the run, with kernels of earlier runs."""
    path: Path
    """Its file."""
    cannot_run: dict[str, str]
    """Kernels that this GPU or this build cannot run, with the reason."""

    @property
    def passed(self) -> bool:
        """True if every kernel that was tried is right; it may still be slow."""
        return all(finding.fault is None for finding in self.findings)

    def on(self) -> list[str]:
        """The kernels that run by themselves from now on; of one op the fastest first."""
        on = [name for name in KERNELS if name not in self.off()]
        return sorted(on, key=lambda name: (KERNELS[name].op, -self.record.speed(name)))

    def off(self) -> dict[str, str]:
        """The kernels that do not, with the reason."""
        reasons = {name: self.cannot_run.get(name) or self.record.obstacle(name) for name in KERNELS}
        return {name: why for name, why in reasons.items() if why is not None}

    def table(self) -> str:
        """A line per kernel and shape."""
        rows = [COLUMNS, *(row for finding in self.findings for row in _rows(finding))]
        widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
        return "\n".join(line.rstrip() for line in lines)

    def in_words(self) -> str:
        """The kernels that are on now, those that are off and why, and the place of the record."""
        on = self.on()
        lines = [f"On for this {self.record.identity.gpu} from now on: {', '.join(on) or 'no kernel'}."]
        lines += [f"Off: {name}: {why}." for name, why in sorted(self.off().items())]
        return "\n".join([*lines, f"Recorded in {self.path}."])

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "passed": self.passed,
            "on": self.on(),
            "off": self.off(),
            "kernels": [asdict(finding) for finding in self.findings],
            "record": {"path": str(self.path), **asdict(self.record)},
        }


def _rows(finding: Finding) -> Iterator[tuple[str, ...]]:
    results = f"right in {finding.checks} checks" if finding.fault is None else "WRONG"
    head = (finding.kernel, results)
    for timing in finding.timings:
        ours, torch = timing.milliseconds[finding.kernel], timing.milliseconds[timing.best]
        yield (*head, timing.case, f"{ours:.4f}", f"{torch:.4f}", f"{timing.times_as_fast:.2f}", timing.best)
    for case, why in finding.untimed.items():
        yield (*head, case, "-", "-", "-", why)
    if not finding.timings and not finding.untimed:
        yield (*head, "-", "-", "-", "-", "-")
