# SPDX-License-Identifier: Apache-2.0
"""The schema of the documents that measurements leave behind (bench/README.md)."""

from __future__ import annotations

from typing import Any

from aapt_fast.profiling.document import SCHEMA, SECTIONS

HEAD = {"schema", "gpu", "driver", "torch", "commit", "command", "date", "machine", "ceilings", *SECTIONS}
TIMES = ("p50_ms", "p95_ms", "p99_ms")
FIELDS = {
    "results": {"name", *TIMES, "tflops", "share_of_ceiling", "baseline", "ratio", "cold_l2", "what_ran"},
    "measurements": {"name", "value", "unit", "predicted", "verdict", "what_ran"},
    "failures": {"name", "what_ran", "reason"},
    "stages": {"name", "status", "seconds", "limit_s", "detail"},
    "clocks": {"when", "clocks"},
}


def problems(content: dict[str, Any]) -> list[str]:
    """List the deviations of a document from schema 1; empty for a good one."""
    if content.get("schema") != SCHEMA:
        return [f"expected schema {SCHEMA}, got {content.get('schema')!r}"]
    found = [f"lacks {field}" for field in sorted(HEAD - set(content))]
    for section, fields in FIELDS.items():
        for number, entry in enumerate(content.get(section, [])):
            found += [f"{section}[{number}] lacks {field}" for field in sorted(fields - set(entry))]
    for number, entry in enumerate(content.get("results", [])):
        times = [entry.get(field) for field in TIMES]
        if not all(isinstance(time, float) for time in times) or not 0 < times[0] <= times[1] <= times[2]:
            found.append(f"results[{number}]: expected 0 < p50_ms <= p95_ms <= p99_ms, got {times}")
    return found
