# SPDX-License-Identifier: Apache-2.0
"""Predict one latent frame of the paper's model and sizes on 1, 2, 4 and 8 GPUs."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from aapt_fast.atomic import replacing
from aapt_fast.models.aapt.presets import generator_preset
from aapt_fast.profiling.roofline import LABEL
from aapt_fast.profiling.scaling import Row, scaling_table
from aapt_fast.profiling.systems import PROMPT_TOKENS

PREDICTED = "aapt-8b with AAPT's light decoder, bfloat16; floor and target: prediction of a roofline, not a measurement"


def run(arguments: argparse.Namespace) -> int:
    """Print the table of `profiling.scaling`, and write its rows to `--json`; returns the exit status."""
    rows = rows_of_the_paper()
    print("\n".join(in_words(rows)))
    if arguments.json is not None:
        with replacing(arguments.json) as partial:
            partial.write_text(json.dumps(as_dict(rows), indent=1) + "\n")
    return 0


def rows_of_the_paper() -> list[Row]:
    """The rows for the paper's model."""
    return scaling_table(generator_preset("aapt-8b"), PROMPT_TOKENS)


def in_words(rows: list[Row]) -> list[str]:
    """Lines for a person: what the numbers are, a head, and one line per row."""
    lines = [PREDICTED, f"{'':>22}{'':>9}{'floor':>8}{'target':>8}{'exchange':>10}{'MiB sent':>10}{'paper':>8}"]
    for row in rows:
        where = f"{row.resolution} on {row.gpus} {row.gpu.split()[0]}"
        times = f"{row.floor_ms:8.1f}{row.target_ms:8.1f}{row.exchange_ms:10.1f}{row.sent_mib:10.0f}"
        lines.append(f"{where:<22}{row.scheme:>9}{times}{f'{row.paper_ms:8.0f}' if row.paper_ms else ''}")
    return lines


def as_dict(rows: list[Row]) -> dict[str, Any]:
    """The rows with their unit, ready for JSON; the label says that they are predictions."""
    return {"label": LABEL, "unit": "ms", "rows": [dataclasses.asdict(row) for row in rows]}
