# SPDX-License-Identifier: Apache-2.0
"""Everything that a buyer of GPUs wants of this machine: one document, one table."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from aapt_fast.cli.bench_scaling import as_dict, rows_of_the_paper
from aapt_fast.cli.busy import competition, processes
from aapt_fast.cli.device import chosen_dtype
from aapt_fast.cli.doctor import examine
from aapt_fast.profiling.document import DTYPE_NAMES, Document
from aapt_fast.profiling.machine import measure_machine, plan
from aapt_fast.profiling.scaling import Row

MET, MISSED, CANNOT_RUN = 0, 1, 2


def run(arguments: argparse.Namespace) -> int:
    """Measure, predict, print the table; returns the exit status."""
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = chosen_dtype(arguments.dtype, device)
    todo = plan(device, dtype, target_s=arguments.target, steps=arguments.steps, limit_s=arguments.limit)
    document = Document.new(shlex.join(["aapt-fast", *sys.argv[1:]]), arguments.json)
    question = {"target_s": arguments.target, "device": device.type, "dtype": DTYPE_NAMES[dtype]}
    others = competition(processes())
    rows = rows_of_the_paper()
    document.set(doctor=examine(), question=question, scaling=as_dict(rows))
    measure_machine(document, todo)
    print("\n".join(table(document.content, rows, others)))
    if arguments.json is None:
        print(document.line())
    return status(document.content["frames"], document.content["failures"])


def status(frames: Sequence[Mapping[str, Any]], failures: Sequence[object]) -> int:
    """Exit status: a missed target, else a part that could not be measured, else 0."""
    if any(frame["verdict"] is not None and not frame["verdict"]["met"] for frame in frames):
        return MISSED
    return CANNOT_RUN if failures else MET


def table(content: Mapping[str, Any], rows: Sequence[Row], others: str | None = None) -> list[str]:
    """Lines for a person: the machine, its measurements, what is missing, and the prediction for several GPUs."""
    gpu = content["gpu"]["name"] if content["gpu"] else "no GPU"
    lines = [
        f"{gpu}, driver {content['driver'] or 'none'}, torch {content['torch']}, {content['machine']['processor']}",
        f"aapt_fast {content['commit']}, {content['date']}{f'; {others}' if others else ''}",
    ]
    verdicts = {frame["name"]: frame["verdict"] for frame in content["frames"]}
    title = "measured: one latent frame, four video frames"
    width = max(len(text) for text in (title, *(entry["name"] for entry in content["results"])))
    lines.append(f"{title:{width}}  {'p50 ms':>10}{'p95 ms':>10}{'fps':>8}")
    for entry in content["results"]:
        found = verdicts.get("/".join(entry["name"].split("/")[:3]))
        fps = f"{entry['video_fps']:8.1f}" if "video_fps" in entry else f"{'':8}"
        word = f"  target {found['target_ms']:g} ms {'met' if found['met'] else 'missed'}" if found else ""
        how = f"  {entry['what_ran']}" if found else ""
        lines.append(f"{entry['name']:{width}}  {entry['p50_ms']:10.2f}{entry['p95_ms']:10.2f}{fps}{word}{how}")
    lines += [f"not measured: {failure['name']}: {failure['reason']}" for failure in content["failures"]]
    return [*lines, *_predicted(rows)]


def _predicted(rows: Sequence[Row]) -> list[str]:
    """The fastest way to share a frame per size, GPU and number, beside the paper's time."""
    lines = ["predicted, not measured: aapt-8b with its decoder, ms per latent frame on 1, 2, 4, 8 GPUs"]
    for size, gpu in dict.fromkeys((row.resolution, row.gpu) for row in rows):
        mine = [row for row in rows if (row.resolution, row.gpu) == (size, gpu)]
        counts = sorted({row.gpus for row in mine})
        best = [min(row.target_ms for row in mine if row.gpus == count) for count in counts]
        paper = {row.gpus: row.paper_ms for row in mine if row.paper_ms}
        known = "".join(f"  the paper on {count}: {milliseconds:.0f}" for count, milliseconds in paper.items())
        lines.append(f"  {size:>9} {gpu:9}{''.join(f'{each:8.1f}' for each in best)}{known}")
    return lines
