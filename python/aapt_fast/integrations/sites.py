# SPDX-License-Identifier: Apache-2.0
"""The places in somebody's model where a method can be replaced. What `patch`, `unpatch` and `explain` go through."""

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
    """Of the arguments of `patch`: "vae", "attention" or "cuda_graph"."""
    where: str
    target: Any
    method: str
    methods: type
    """The class whose methods `swap` puts before the target's."""
    runs: str
    """In words, what runs once it is replaced."""
    obstacle: str | None = None
    """Why it is left alone, or None."""
    unasked: str | None = None
    """What is said about a part that is not replaced unless asked for, as long as it is not; None: nothing."""

    @property
    def kind(self) -> str:
        """Class and method."""
        return f"{type(self.target).__name__}.{self.method}"

    @property
    def reason(self) -> str | None:
        """The obstacle, or that somebody else was here first, or None."""
        return self.obstacle or obstacle_to_swap(self.target, self.method)

    def finding(self, what: str) -> Finding:
        """What is said about this place."""
        return Finding(self.part, self.where, self.kind, what)


Findings = tuple[list[Finding], list[Finding]]


def patch_sites(sites: Iterable[Site]) -> Findings:
    """Replace what can be replaced; (replaced, left alone)."""
    replaced, left_alone = [], []
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
    """What is replaced now and runs, and what is not; nothing is changed."""
    replaced, left_alone = [], []
    for site in sites:
        reason = site.reason
        if is_swapped(site.target):
            if reason is None:
                replaced.append(site.finding(site.runs))
            else:
                left_alone.append(site.finding(f"replaced, but the original runs: {reason}"))
        else:
            said = "; ".join(dict.fromkeys(filter(None, (site.unasked, reason))))
            left_alone.append(site.finding(said or f"not patched; patch() would give: {site.runs}"))
    return replaced, left_alone
