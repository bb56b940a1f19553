# SPDX-License-Identifier: Apache-2.0
"""Schema of the documents of measurements: version, lists, fields (docs/reference/measurement-documents.md).

Needs no torch: documents are read, checked and compared on machines that measured nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aapt_fast.errors import require

SCHEMA = 1
"""Version. It changes when a field loses its meaning or goes away; a new field leaves it as it is."""

Types = tuple[type, ...]
_TEXT, _NUMBER, _NOTHING = (str,), (int, float), (type(None),)

HEAD: Mapping[str, Types] = {
    "schema": (int,),
    "gpu": (dict, *_NOTHING),
    "driver": (str, *_NOTHING),
    "torch": _TEXT,
    "commit": _TEXT,
    "command": _TEXT,
    "date": _TEXT,
    "machine": (dict,),
    "ceilings": (dict,),
}
"""Fields of every document beside its lists, and the types of their values."""

FIELDS: Mapping[str, Mapping[str, Types]] = {
    "results": {
        "name": _TEXT,
        "p50_ms": _NUMBER,
        "p95_ms": _NUMBER,
        "p99_ms": _NUMBER,
        "repetitions": (int,),
        "noise": _NUMBER,
        "timer": _TEXT,
        "cold_l2": (bool, *_NOTHING),
        "what_ran": _TEXT,
        "tflops": (*_NUMBER, *_NOTHING),
        "share_of_ceiling": (*_NUMBER, *_NOTHING),
        "baseline": (str, *_NOTHING),
        "ratio": (*_NUMBER, *_NOTHING),
    },
    "measurements": {
        "name": _TEXT,
        "value": _NUMBER,
        "unit": _TEXT,
        "predicted": (list, *_NOTHING),
        "verdict": _TEXT,
        "what_ran": _TEXT,
    },
    "failures": {"name": _TEXT, "what_ran": _TEXT, "reason": _TEXT},
    "stages": {
        "name": _TEXT,
        "status": _TEXT,
        "seconds": _NUMBER,
        "limit_s": _NUMBER,
        "detail": (str, dict, list, *_NOTHING),
    },
    "clocks": {"when": _TEXT, "clocks": (str, *_NOTHING)},
}
"""Lists of every document, the fields of their entries, and the types of their values. Entries may have more."""

SECTIONS = tuple(FIELDS)
TIMES = ("p50_ms", "p95_ms", "p99_ms")


def read_document(path: Path) -> dict[str, Any]:
    """Read a document of this schema from a file, without a look at its entries.

    Raises ValueError, which names the file, for damaged JSON and for another schema, OSError for an unreadable file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of the text or of its encoding
        expected = f"a document of measurements of schema {SCHEMA}"
        raise ValueError(f"{path}: expected {expected}, got no JSON: {error}") from error
    require(isinstance(content, dict), str(path), f"schema {SCHEMA}", f"JSON of another kind: {type(content).__name__}")
    require("schema" in content, str(path), f"schema {SCHEMA}", "JSON without a schema")
    known = content["schema"] == SCHEMA and not isinstance(content["schema"], bool)
    require(known, str(path), f"schema {SCHEMA}", content["schema"])
    return dict(content)


def problems(content: Mapping[str, Any]) -> list[str]:
    """List the deviations of a document from the schema; empty for a good one."""
    if content.get("schema") != SCHEMA:
        return [f"expected schema {SCHEMA}, got {content.get('schema')!r}"]
    found = [f"lacks {field}" for field in sorted({*HEAD, *SECTIONS} - set(content))]
    found += _of_another_type("", content, HEAD)
    for section, fields in FIELDS.items():
        entries = content.get(section, [])
        if not isinstance(entries, list):
            found.append(f"{section}: expected a list, got {type(entries).__name__}")
            continue
        for number, entry in enumerate(entries):
            found += _problems_of(f"{section}[{number}]", entry, fields)
    return found


def _problems_of(where: str, entry: Any, fields: Mapping[str, Types]) -> list[str]:
    if not isinstance(entry, dict):
        return [f"{where}: expected an object, got {type(entry).__name__}"]
    found = [f"{where} lacks {field}" for field in sorted(set(fields) - set(entry))]
    if TIMES[0] not in fields:
        return found + _of_another_type(f"{where} ", entry, fields)
    times = [entry.get(field) for field in TIMES]
    numbers = [time for time in times if isinstance(time, float)]
    if len(numbers) < len(TIMES) or not 0 < numbers[0] <= numbers[1] <= numbers[2]:
        found.append(f"{where}: expected 0 < p50_ms <= p95_ms <= p99_ms, got {times}")
    return found + _of_another_type(f"{where} ", entry, {name: fields[name] for name in fields if name not in TIMES})


def _of_another_type(where: str, entry: Mapping[str, Any], fields: Mapping[str, Types]) -> list[str]:
    found = []
    for field, types in fields.items():
        value = entry.get(field)
        number_that_is_none = isinstance(value, bool) and bool not in types
        if field in entry and (number_that_is_none or not isinstance(value, types)):
            names = " or ".join("null" if each is type(None) else each.__name__ for each in types)
            found.append(f"{where}{field}: expected {names}, got {type(value).__name__}")
    return found
