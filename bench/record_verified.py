# SPDX-License-Identifier: Apache-2.0
"""Adds the kernels that a GPU run has verified to python/aapt_fast/ops/verified.json.

    python bench/record_verified.py RESULT.json [--only KERNEL ...]

RESULT.json has at its top level `gpu` (a name, or an object with one), `driver`, `torch`, `commit`, `date`, and
`verified`: a list of `{"kernel": ..., "architecture": ..., "hash": ..., "passed": true}`, one per kernel whose tests
have all passed on that GPU. One that has failed is refused; --only records others of the same run. An older entry of
the same kernel and architecture is replaced. The last line printed is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aapt_fast.errors import require
from aapt_fast.ops.kernels import KERNELS
from aapt_fast.ops.verified import FILE, SCHEMA, Entry, entry_of, read_entries

OF_THE_RUN = ("gpu", "driver", "torch", "commit", "date")
OF_THE_KERNEL = ("kernel", "architecture", "hash")


def entries_of(result: Any, only: Sequence[str] = ()) -> list[Entry]:
    """The entries that the JSON document of a GPU run stands for; of the kernels in `only`, if there are any.

    Raises:
        ValueError: a fact is missing or malformed, a kernel is unknown, named twice or has not passed.
    """
    require(isinstance(result, dict), "result", "a JSON object", type(result).__name__)
    missing = [name for name in (*OF_THE_RUN, "verified") if name not in result]
    require(not missing, "result", f"{', '.join(OF_THE_RUN)} and verified", f"none of {', '.join(missing)}")
    require(not result.get("rehearsal"), "result", "a run on a GPU", "a rehearsal")
    kernels = result["verified"]
    require(isinstance(kernels, list) and kernels != [], "verified", "a list with at least one kernel", kernels)
    named = [facts.get("kernel") if isinstance(facts, dict) else None for facts in kernels]
    absent = sorted(set(only) - set(named))
    require(not absent, "only", f"kernels of the run, {', '.join(map(str, named))}", ", ".join(absent))
    chosen = [number for number, name in enumerate(named) if not only or name in only]
    run = _facts_of_the_run(result)
    found = [_entry(run, kernels[number], f"verified[{number}]") for number in chosen]
    keys = [(entry.kernel, entry.architecture) for entry in found]
    twice = sorted({" for ".join(key) for key in keys if keys.count(key) > 1})
    require(not twice, "verified", "each kernel and architecture once", f"{', '.join(twice)} more than once")
    return found


def _facts_of_the_run(result: dict[str, Any]) -> dict[str, Any]:
    run = {name: result[name] for name in OF_THE_RUN}
    if isinstance(run["gpu"], dict):
        run["gpu"] = run["gpu"].get("name")
    if isinstance(run["date"], str):
        run["date"] = run["date"].split("T")[0]  # the day is enough
    return run


def _entry(run: dict[str, Any], facts: Any, where: str) -> Entry:
    expected = (*OF_THE_KERNEL, "passed")
    require(isinstance(facts, dict) and set(expected) <= set(facts), where, ", ".join(expected), facts)
    require(facts["passed"] is True, f"{where}: passed", "true", json.dumps(facts["passed"]))
    entry = entry_of(run | {name: facts[name] for name in OF_THE_KERNEL}, where)
    require(entry.kernel in KERNELS, f"{where}: kernel", " or ".join(KERNELS), entry.kernel)
    return entry


def record(result: Any, file: Path = FILE, only: Sequence[str] = ()) -> list[Entry]:
    """Add the entries of a GPU run to `file`, which is replaced as a whole or not at all; returns what was added."""
    added = entries_of(result, only)
    replaced = {(entry.kernel, entry.architecture) for entry in added}
    kept = [entry for entry in read_entries(file) if (entry.kernel, entry.architecture) not in replaced]
    every = sorted([*kept, *added], key=lambda entry: (entry.kernel, entry.architecture))
    draft = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        draft.write_text(json.dumps({"schema": SCHEMA, "entries": [asdict(entry) for entry in every]}, indent=2) + "\n")
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
    return added


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, help="JSON document of a GPU run")
    parser.add_argument("--file", type=Path, default=FILE, help="what to add to (default: %(default)s)")
    parser.add_argument("--only", nargs="+", default=(), metavar="KERNEL", help="record these kernels of the run only")
    options = parser.parse_args(arguments)
    added = record(json.loads(options.result.read_text()), options.file, options.only)
    for entry in added:
        print(f"{entry.kernel} {entry.architecture} {entry.hash[:12]}: verified on {entry.gpu}, {entry.date}")
    print(json.dumps({"added": [asdict(entry) for entry in added], "file": str(options.file)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
