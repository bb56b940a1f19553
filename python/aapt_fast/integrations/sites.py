# SPDX-License-Identifier: Apache-2.0
"""Places in a model where a method can be replaced. `patch`, `unpatch` and `explain` go through them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from aapt_fast.integrations.report import Finding
from aapt_fast.integrations.swap import is_swapped, obstacle_to_swap, swap


@dataclass(frozen=True)
class Site:
    """One object with a method that can be replaced."""

    part: str
    """Argument of `patch` that asks for it: "vae" or "attention"."""
    where: str
    """Dotted place in the object that was given to `patch`."""
    target: Any
    """Object whose method is replaced."""
    method: str
    """Name of the method."""
    methods: type
    """Class whose methods `swap` puts before the target's."""
    runs: str
    """Implementation that runs once the method is replaced, in words."""
    obstacle: str | None = None
    """Reason to leave it alone, or None."""

    @property
    def kind(self) -> str:
        """Class and method, for example "WanCausalConv3d.forward"."""
        return f"{type(self.target).__name__}.{self.method}"

    @property
    def reason(self) -> str | None:
        """The obstacle, or a note that another package has replaced the method, or None."""
        return self.obstacle or obstacle_to_swap(self.target, self.method)

    def finding(self, what: str) -> Finding:
        """Line of a report about this place."""
        return Finding(self.part, self.where, self.kind, what)


Findings = tuple[list[Finding], list[Finding]]
"""Places that are replaced, and places that are left alone."""


def patch_sites(sites: Iterable[Site]) -> Findings:
    """Replace every method that has no reason to be left alone."""
    replaced: list[Finding] = []
    left_alone: list[Finding] = []
    for site in sites:
        reason = site.reason
        if reason is None:
            if not is_swapped(site.target):
                swap(site.target, site.methods)
            replaced.append(site.finding(site.runs))
        else:
            left_alone.append(site.finding(reason))
    return replaced, left_alone


def explain_sites(sites: Iterable[Site]) -> Findings:
    """Report the present state of every place; nothing is changed."""
    replaced: list[Finding] = []
    left_alone: list[Finding] = []
    for site in sites:
        reason = site.reason
        if not is_swapped(site.target):
            left_alone.append(site.finding(reason or f"not patched; patch() would give: {site.runs}"))
        elif reason is None:
            replaced.append(site.finding(site.runs))
        else:
            left_alone.append(site.finding(f"replaced, but the original runs: {reason}"))
    return replaced, left_alone
