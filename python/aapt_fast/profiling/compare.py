# SPDX-License-Identifier: Apache-2.0
"""Two documents of measurements side by side, entry by entry. Needs no torch."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aapt_fast.errors import require
from aapt_fast.profiling.schema import problems, read_document

COMPARISON = 1
"""Version of the JSON of a comparison."""

CIRCUMSTANCES = ("gpu", "driver", "torch", "commit", "machine", "command")
"""Fields of a document that say where and how it was measured. Where they differ, the comparison says so."""

CONDITIONS = ("geometry", "video_frames", "decoder", "timer", "cold_l2", "unit")
"""Fields of an entry that say what was measured. Entries that differ in one that both know are not compared."""

FEWEST_REPETITIONS = 5
"""Fewer give no spread."""


@dataclass(frozen=True)
class Row:
    """An entry that both documents have: medians in milliseconds, or values in `unit`."""

    name: str
    unit: str
    first: float
    second: float
    first_spread: float | None
    second_spread: float | None
    """As shares of the values; None where it is unknown, as it is for all `measurements`."""
    note: str
    """Systems of both, where these differ; else empty."""

    @property
    def ratio(self) -> float | None:
        """The first value over the second; of times, above 1 means that the second document is faster."""
        return self.first / self.second if self.second else None

    @property
    def verdict(self) -> str:
        """Word for the difference; "faster" and "slower" are said of the second document."""
        if self.first_spread is None or self.second_spread is None:
            return "spread unknown"
        spread = math.hypot(self.first * self.first_spread, self.second * self.second_spread)
        if abs(self.first - self.second) <= spread:
            return "within the spread"
        return "faster" if self.second < self.first else "slower"


@dataclass(frozen=True)
class Comparison:
    """Entries that two documents have in common, and everything in which they differ."""

    rows: tuple[Row, ...]
    circumstances: Mapping[str, tuple[str, str]]
    """Fields of `CIRCUMSTANCES` that differ, in words."""
    not_compared: Mapping[str, str]
    """Entries of one name that measured different things, with the reason."""
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]

    def in_words(self) -> list[str]:
        """Lines for a person: what differs around the measurements, a table, and what it leaves out."""
        lines = [f"{name}: {first} | {second}" for name, (first, second) in self.circumstances.items()]
        width = max((len(row.name) for row in self.rows), default=0)
        lines.append(f"{'p50, or value':{width}}  {'first':>20}{'second':>20}{'ratio':>8}")
        for row in self.rows:
            values = f"{_value(row.first, row.first_spread)}{_value(row.second, row.second_spread)}"
            ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
            note = f"; {row.note}" if row.note else ""
            lines.append(
                f"{row.name:{width}}  {values}{ratio:>8}  {row.unit + ', ' if row.unit else ''}{row.verdict}{note}"
            )
        lines.append("ratio: first over second; faster and slower are said of the second")
        lines += [f"not compared: {name}: {why}" for name, why in self.not_compared.items()]
        for word, names in (("first", self.only_first), ("second", self.only_second)):
            if names:
                lines.append(f"only in the {word}: {', '.join(names)}")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """The comparison, ready for JSON."""
        rows = [{**dataclasses.asdict(row), "ratio": row.ratio, "verdict": row.verdict} for row in self.rows]
        return {"comparison": COMPARISON, **dataclasses.asdict(self), "rows": rows}


def read_results(path: Path) -> dict[str, Any]:
    """Read a document that can be compared.

    Raises ValueError, which names the file, for damaged JSON, another schema, entries that do not fit it, and a
    rehearsal; OSError for an unreadable file.
    """
    content = read_document(path)
    require(not content.get("rehearsal"), str(path), "measurements", "a rehearsal, whose times mean nothing")
    found = problems(content)
    more = f", and {len(found) - 1} more problems" if len(found) > 1 else ""
    require(not found, str(path), f"entries of schema {content['schema']}", f"{''.join(found[:1])}{more}")
    return content


def compare_files(first: Path, second: Path) -> Comparison:
    """Read and compare two documents. Raises as `read_results`, and ValueError for files without a common entry."""
    found = compare(read_results(first), read_results(second))
    if not found.rows:
        what = "entries of other names only" if not found.not_compared else "; ".join(_reasons(found.not_compared))
        require(False, str(second), f"a measurement that {first} has as well", what)
    return found


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> Comparison:
    """Compare the `results` and `measurements` of two documents that fit the schema.

    Entries belong together by name and, where a document has several of that name, by system, launch and cache.
    """
    one, two = _by_name(first, second)
    differing = {name: _difference(one[name], two[name]) for name in one if name in two}
    fields = ((name, _words(first.get(name)), _words(second.get(name))) for name in CIRCUMSTANCES)
    return Comparison(
        rows=tuple(_row(name, one[name], two[name]) for name, why in differing.items() if why is None),
        circumstances={name: (here, there) for name, here, there in fields if here != there},
        not_compared={name: why for name, why in differing.items() if why is not None},
        only_first=tuple(name for name in one if name not in two),
        only_second=tuple(name for name in two if name not in one),
    )


def spread(entry: Mapping[str, Any]) -> float | None:
    """Estimate how far off the median of a result may be, as a share of it; None where too little is known.

    The larger of its `noise` and of 1.5 (p95 - p50) / sqrt(repetitions), which is two standard errors of the median of
    a normal distribution.
    """
    if entry.get("p50_ms") is None or entry["repetitions"] < FEWEST_REPETITIONS:
        return None
    error = 1.5 * (entry["p95_ms"] - entry["p50_ms"]) / math.sqrt(entry["repetitions"])
    return max(float(entry["noise"]), error / entry["p50_ms"])


def _row(name: str, one: Mapping[str, Any], two: Mapping[str, Any]) -> Row:
    field, unit = ("p50_ms", "ms") if "p50_ms" in one else ("value", one.get("unit", ""))
    systems = (one["what_ran"], two["what_ran"])
    note = "" if systems[0] == systems[1] else f"{systems[0]} | {systems[1]}"
    return Row(name, unit, one[field], two[field], spread(one), spread(two), note)


def _difference(one: Mapping[str, Any], two: Mapping[str, Any]) -> str | None:
    """The first condition in which two entries differ, in words."""
    for field in CONDITIONS:
        here, there = one.get(field), two.get(field)
        if isinstance(here, Mapping) and isinstance(there, Mapping):
            parts = [part for part in here if part in there and here[part] != there[part]]
            if parts:
                return ", ".join(f"{part} {here[part]} | {there[part]}" for part in parts)
        elif here is not None and there is not None and here != there:
            return f"{field} {here} | {there}"
    return None


def _by_name(
    first: Mapping[str, Any], second: Mapping[str, Any]
) -> tuple[dict[str, Mapping[str, Any]], dict[str, Mapping[str, Any]]]:
    """Entries of both documents by names that are unique in each, found by one rule."""
    both = [[*document["results"], *document["measurements"]] for document in (first, second)]
    several = {
        name for entries in both for name, times in Counter(each["name"] for each in entries).items() if times > 1
    }
    return _named(both[0], several), _named(both[1], several)


def _named(entries: Sequence[Mapping[str, Any]], several: Collection[str]) -> dict[str, Mapping[str, Any]]:
    """Entries by name; those in `several` with system, launch and cache, and numbered where that is not enough."""
    found: dict[str, Mapping[str, Any]] = {}
    for each in entries:
        cold = each.get("cold_l2")
        cache = None if cold is None else "cold" if cold else "warm"
        more = (each["what_ran"], each.get("launch"), cache) if each["name"] in several else ()
        name = " ".join([each["name"], *(str(part) for part in more if part)])
        times, numbered = 1, name
        while numbered in found:
            times += 1
            numbered = f"{name} #{times}"
        found[numbered] = each
    return found


def _reasons(not_compared: Mapping[str, str]) -> list[str]:
    return [f"{name} with {why}" for name, why in list(not_compared.items())[:3]]


def _value(value: float, share: float | None) -> str:
    return f"{f'{value:.3f}' + (f' ±{share:.1%}' if share is not None else ''):>20}"


def _words(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(str(each) for each in value.values() if each is not None)
    return "none" if value is None else str(value)
