# SPDX-License-Identifier: Apache-2.0
"""What `patch` and `explain` say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Finding:
    """One thing that was replaced or left alone."""

    part: str
    """What was asked for: "vae", "attention" or "cuda_graph"."""
    where: str
    """Dotted place in the patched object; "" is the object itself."""
    kind: str
    """Class and method, for example "WanCausalConv3d.forward"."""
    what: str
    """What runs now, or why nothing was changed."""


@dataclass(frozen=True)
class PatchReport:
    """What was replaced and what was left alone, with the reasons. `str(report)` is for people."""

    subject: str
    replaced: tuple[Finding, ...] = ()
    left_alone: tuple[Finding, ...] = field(default=())

    def parts(self) -> set[str]:
        """Names of the parts of which something was replaced."""
        return {finding.part for finding in self.replaced}

    def __str__(self) -> str:
        lines = [f"{self.subject}: {len(self.replaced)} replaced, {len(self.left_alone)} left alone"]
        for title, findings in (("replaced", self.replaced), ("left alone", self.left_alone)):
            lines += [f"  {title}: {line}" for line in _grouped(findings)]
        return "\n".join(lines)


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
