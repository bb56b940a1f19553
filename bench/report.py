# SPDX-License-Identifier: Apache-2.0
"""Turn the documents of bench/results/ into Markdown.

    python -m bench.report            print every table
    python -m bench.report --write    put the GPU section between its markers in README.md
    python -m bench.report --check    1 if that section is not what --write would put there

The GPU section comes from documents of schema 1 that were measured on a GPU; of several runs on one kind of GPU the
latest counts. Rehearsals are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from aapt_fast.profiling.schema import SCHEMA
from bench.harness.program import ROOT

RESULTS = ROOT / "bench" / "results"
README = ROOT / "README.md"

BEGIN = "<!-- gpu results: written by `python -m bench.report --write` -->"
END = "<!-- end of gpu results -->"
NOTHING = "No GPU result exists: nothing has run on one."


def load(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the documents of a folder, by file name. Raises ValueError for a file that is not JSON."""
    documents = {}
    for path in sorted(folder.glob("*.json")):
        try:
            documents[path.name] = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: expected JSON, got {error}") from None
    return documents


def on_a_gpu(documents: dict[str, dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """List (file name, document) of the latest run per kind of GPU."""
    latest: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, document in documents.items():
        if document.get("schema") != SCHEMA or not document.get("gpu") or document.get("rehearsal"):
            continue
        kind = document["gpu"]["name"]
        if kind not in latest or document["date"] > latest[kind][1]["date"]:
            latest[kind] = name, document
    return [latest[kind] for kind in sorted(latest)]


def gpu_section(documents: dict[str, dict[str, Any]]) -> str:
    """Write the README's section of GPU results, or the sentence that there are none."""
    parts = [_gpu_run(name, document) for name, document in on_a_gpu(documents)]
    return "\n\n".join(parts) if parts else NOTHING


def _gpu_run(name: str, document: dict[str, Any]) -> str:
    gpu, ceilings = document["gpu"], document.get("ceilings") or {}
    where = f"{gpu['name']}, driver {document['driver']}, torch {document['torch']}"
    parts = [f"{where}; {document['date'][:10]}, commit {document['commit']}, `{document['command']}` ({name})."]
    if ceilings:
        rates = f"{ceilings['matmul_tflops']:.0f} TFLOP/s (bf16 matmul) and {ceilings['copy_tb_s']:.2f} TB/s (copy)"
        parts[0] += f" Ceilings of the same run: {rates}."
    parts += [text for text in (_results(document), _measurements(document), _tests(document)) if text]
    return "\n\n".join(parts)


def _results(document: dict[str, Any]) -> str:
    """The package's results with a cold L2, launched as users launch it, against the best baseline."""
    rows = [
        (entry["name"], _what(entry), *_times(entry), _number(entry["tflops"], ".0f"), _share(entry), _versus(entry))
        for entry in document["results"]
        if entry.get("launch", "stream") == "stream" and entry["cold_l2"] is not False and _is_ours(entry)
    ]
    head = ("what", "ran", "p50 ms", "p95 ms", "p99 ms", "TFLOP/s", "of the ceiling", "times as fast as the baseline")
    return markdown(head, rows) if rows else ""


def _is_ours(entry: dict[str, Any]) -> bool:
    return bool(entry.get("ours")) or entry["name"].startswith("frame/")


def _what(entry: dict[str, Any]) -> str:
    return str(entry["what_ran"]).replace("|", "/")


def _times(entry: dict[str, Any]) -> tuple[str, str, str]:
    p50, p95, p99 = (f"{entry[key]:.4g}" for key in ("p50_ms", "p95_ms", "p99_ms"))
    return p50, p95, p99


def _share(entry: dict[str, Any]) -> str:
    return _number(entry["share_of_ceiling"], ".0%")


def _versus(entry: dict[str, Any]) -> str:
    return "-" if entry["ratio"] is None else f"{entry['ratio']:.2f} ({entry['baseline']})"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _measurements(document: dict[str, Any]) -> str:
    rows = []
    for entry in document["measurements"]:
        predicted, value = entry["predicted"], entry["value"]
        predicted = " to ".join(dict.fromkeys(f"{number:g}" for number in predicted))
        shown = f"{value:.4g} {entry['unit']}" if isinstance(value, int | float) else f"{value} {entry['unit']}"
        rows.append((entry["name"], entry["what_ran"], shown.strip(), predicted, entry["verdict"]))
    return markdown(("measured", "with", "value", "predicted", "verdict"), rows) if rows else ""


def _tests(document: dict[str, Any]) -> str:
    tests = document.get("tests", {})
    if not tests:
        return ""
    counts = ", ".join(
        f"{sum(each[kind] for each in tests.values())} {kind}" for kind in ("passed", "failed", "skipped")
    )
    bad = ", ".join(f"`{name}`" for name, each in tests.items() if not each["good"])
    return f"Tests in {len(tests)} files: {counts}." + (f" Not good: {bad}." if bad else "")


def markdown(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Format a table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def others(documents: dict[str, dict[str, Any]]) -> str:
    """Describe the documents outside the GPU section: a table where results have names and times, else words."""
    used = {name for name, _ in on_a_gpu(documents)}
    parts = []
    for name, document in documents.items():
        if name in used:
            continue
        timed = [e for e in document.get("results", []) if {"name", "p50_ms", "p95_ms", "p99_ms"} <= set(e)]
        if document.get("rehearsal"):
            parts.append(f"{name}: a rehearsal; its times mean nothing.")
        elif not timed:
            parts.append(f"{name}: schema {document.get('schema')!r}, without a result that has a name and times.")
        else:
            rows = [(entry["name"], *_times(entry), _versus({"ratio": None, **entry})) for entry in timed]
            parts.append(f"{name}:\n\n" + markdown(("what", "p50 ms", "p95 ms", "p99 ms", "ratio (baseline)"), rows))
    return "\n\n".join(parts)


def with_section(readme: str, section: str) -> str:
    """Put this GPU section into the README. Raises ValueError unless both markers are there once, in order."""
    begin, end = readme.find(BEGIN), readme.find(END)
    if begin < 0 or end < begin or readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise ValueError(f"README: expected once each, in this order: {BEGIN} and {END}")
    return f"{readme[: begin + len(BEGIN)]}\n{section}\n{readme[end:]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--readme", type=Path, default=README)
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--write", action="store_true")
    action.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    documents = load(arguments.results)
    section = gpu_section(documents)
    if not arguments.write and not arguments.check:
        print(f"{section}\n\n{others(documents)}")
        return
    readme = arguments.readme.read_text()
    updated = with_section(readme, section)
    if arguments.write:
        arguments.readme.write_text(updated)
    elif updated != readme:
        print(
            f"{arguments.readme}: the GPU section differs from {arguments.results}: run python -m bench.report --write"
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
