# SPDX-License-Identifier: Apache-2.0
"""Reports of `patch` and `explain`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One place that was replaced or left alone, or one op of a model of this package."""

    part: str
    """Argument of `patch` that replaces it, "vae" or "attention"; or "op" in a model of this package."""
    where: str
    """Dotted place in the patched object; "" is the object itself."""
    kind: str
    """Class and method, for example "WanCausalConv3d.forward"; or the name of the op."""
    what: str
    """Implementation that runs now, or the reason why nothing was changed."""


@dataclass(frozen=True)
class PatchReport:
    """Places that were replaced or left alone, with the reasons. `str(report)` is for people."""

    subject: str
    """Class of the patched object."""
    replaced: tuple[Finding, ...] = ()
    left_alone: tuple[Finding, ...] = ()
    own: tuple[Finding, ...] = ()
    """Ops of a model of this package, which has nothing to replace."""
    kernels: str | None = None
    """State of the record of this GPU's kernels in words; None on a CPU, and where no kernel can run."""

    def parts(self) -> set[str]:
        """Names of the parts with a replaced place."""
        return {finding.part for finding in self.replaced}

    def __str__(self) -> str:
        if self.own:
            return "\n".join(
                [f"{self.subject}: aapt_fast's own, there is nothing to replace"]
                + [f"  runs: {line}" for line in _grouped(self.own)]
                + self._kernels()
            )
        lines = [f"{self.subject}: {len(self.replaced)} replaced, {len(self.left_alone)} left alone"]
        for title, findings in (("replaced", self.replaced), ("left alone", self.left_alone)):
            lines += [f"  {title}: {line}" for line in _grouped(findings)]
        return "\n".join(lines + self._kernels())

    def _kernels(self) -> list[str]:
        return [] if self.kernels is None else [f"  kernels: {self.kernels}"]


def _grouped(findings: Iterable[Finding]) -> list[str]:
    """One line per part, kind and reason, with the number of places or the one place."""
    places: dict[tuple[str, str, str], list[str]] = {}
    for finding in findings:
        places.setdefault((finding.part, finding.kind, finding.what), []).append(finding.where)
    lines = []
    for (part, kind, what), where in places.items():
        place = f" at {where[0]}" if len(where) == 1 and where[0] else ""
        count = f"{len(where)} x " if len(where) > 1 else ""
        lines.append(f"{part}: {count}{kind}{place}: {what}")
    return lines
