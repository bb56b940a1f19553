# SPDX-License-Identifier: Apache-2.0
"""Two documents of measurements side by side (schema 1 of bench/README.md). Needs no torch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aapt_fast.errors import require

SCHEMA = 1
CIRCUMSTANCES = ("gpu", "driver", "torch", "commit", "command", "machine")
"""Fields of a document that say where and how it was measured."""


@dataclass(frozen=True)
class Row:
    """A result that both documents have. Times are medians in milliseconds."""

    name: str
    first_ms: float
    second_ms: float
    noise: float
    """The larger of the two relative noises: a smaller difference means nothing."""

    @property
    def times_as_fast(self) -> float:
        """The first time over the second: above 1, the second document is faster."""
        return self.first_ms / self.second_ms

    @property
    def verdict(self) -> str:
        """What the difference means: "faster" and "slower" are said of the second document."""
        if abs(self.first_ms - self.second_ms) <= self.noise * min(self.first_ms, self.second_ms):
            return "within noise"
        return "faster" if self.times_as_fast > 1 else "slower"


@dataclass(frozen=True)
class Comparison:
    """What two documents have in common, and what differs."""

    rows: tuple[Row, ...]
    circumstances: Mapping[str, tuple[str, str]]
    """Fields of `CIRCUMSTANCES` that differ, in words."""
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]

    def in_words(self) -> list[str]:
        """Lines for a person: what differs besides the times, a table, and what only one document has."""
        lines = [f"{name}: {first} | {second}" for name, (first, second) in self.circumstances.items()]
        width = max((len(row.name) for row in self.rows), default=0)
        lines.append(f"{'p50 in ms':{width}}{'first':>12}{'second':>12}{'ratio':>8}{'noise':>8}")
        for row in self.rows:
            times = f"{row.first_ms:12.3f}{row.second_ms:12.3f}{row.times_as_fast:8.3f}{row.noise:8.1%}"
            lines.append(f"{row.name:{width}}{times}  {row.verdict}")
        for word, names in (("first", self.only_first), ("second", self.only_second)):
            if names:
                lines.append(f"only in the {word}: {', '.join(names)}")
        return lines


def read_results(path: Path) -> dict[str, Any]:
    """Read a document. Raises ValueError for a file that is none of schema 1, or that a rehearsal has written."""
    try:
        content = json.loads(path.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: expected a document of measurements, got {type(error).__name__}: {error}") from error
    schema = content.get("schema") if isinstance(content, dict) else None
    require(schema == SCHEMA, str(path), f"a document of schema {SCHEMA} (bench/README.md)", f"schema {schema}")
    require(not content.get("rehearsal"), str(path), "measurements", "a rehearsal, whose times mean nothing")
    return content


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> Comparison:
    """Compare the medians of results of the same name and, where it has several, of the same system and cache.

    Raises ValueError where the documents have no result in common.
    """
    counts = (Counter(each["name"] for each in document["results"]) for document in (first, second))
    several = {name for count in counts for name, times in count.items() if times > 1}
    one, two = _by_name(first, several), _by_name(second, several)
    both = [name for name in one if name in two]
    require(bool(both), "documents", "a result that both have", f"{_some(one)} and {_some(two)}")
    rows = (
        Row(
            name,
            one[name]["p50_ms"],
            two[name]["p50_ms"],
            max(one[name].get("noise") or 0, two[name].get("noise") or 0),
        )
        for name in both
    )
    fields = ((name, _words(first.get(name)), _words(second.get(name))) for name in CIRCUMSTANCES)
    return Comparison(
        tuple(rows),
        {name: (here, there) for name, here, there in fields if here != there},
        tuple(name for name in one if name not in two),
        tuple(name for name in two if name not in one),
    )


def _by_name(document: Mapping[str, Any], several: Collection[str]) -> dict[str, Mapping[str, Any]]:
    """Results by name; where `several` has it, of several systems or states of the cache, those are in the name too."""
    found = {}
    for each in document["results"]:
        cold = {True: "cold", False: "warm"}.get(each.get("cold_l2"))
        more = (each.get("what_ran"), each.get("launch"), cold) if each["name"] in several else ()
        found[" ".join([each["name"], *(str(part) for part in more if part)])] = each
    return found


def _some(results: Mapping[str, object]) -> str:
    return ", ".join(list(results)[:3]) or "no result"


def _words(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {each}" for name, each in value.items() if each is not None)
    return "unknown" if value is None else str(value)
