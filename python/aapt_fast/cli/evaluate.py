# SPDX-License-Identifier: Apache-2.0
"""Measure models against the exact truth: drift, control, Frechet distance, dynamic degree, mirror test, latency."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from aapt_fast.cli.signals import HeldSignals
from aapt_fast.errors import require
from aapt_fast.limits import require_folder
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.progress import say
from aapt_fast.training.data import ClipSetConfig
from aapt_fast.training.evaluate import Row, evaluate, require_measurable
from aapt_fast.training.recipes import HELD_OUT, HELD_OUT_SETS, control_reader

CACHE = Path("~/.cache/aapt_fast")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help="a bundled model or a file (default: mini-person)")
    parser.add_argument(
        "--row",
        action="append",
        default=[],
        metavar="NAME=MODEL[:NFE]",
        help="instead of `model`, and repeatable: several models, or one at several nfe, in one report",
    )
    parser.add_argument(
        "--held-out",
        choices=HELD_OUT_SETS,
        default="gallery",
        help="persons that the model knows, strangers, or persons in company (default: %(default)s)",
    )
    parser.add_argument("--nfe", type=int, default=1, help="network evaluations per step, of rows that give none")
    parser.add_argument("--clips", type=int, default=HELD_OUT.clips, help="held-out motions (default %(default)s)")
    parser.add_argument(
        "--frames",
        type=int,
        default=HELD_OUT.frames - 1,
        help="video frames per clip after the given first one, rounded up to whole steps (default %(default)s)",
    )
    parser.add_argument("--out", type=Path, help="folder for report, CSV, plots and contact sheet")
    parser.add_argument(
        "--pose-network",
        type=Path,
        default=CACHE,
        help="folder that keeps the trained pose network (default %(default)s)",
    )


def run(arguments: argparse.Namespace) -> None:
    require(arguments.frames >= 1, "frames", "at least 1", arguments.frames)
    require(not (arguments.model and arguments.row), "row", "either a model or --row", "both")
    networks = arguments.pose_network.expanduser()
    require_folder("--pose-network", networks)
    if arguments.out is not None:
        require_folder("--out", arguments.out)
    rows = _rows(arguments.row or [f"model={arguments.model or 'mini-person'}"], arguments.nfe)
    size = rows[0].model.video_size[0]
    config: ClipSetConfig = dataclasses.replace(
        HELD_OUT_SETS[arguments.held_out], clips=arguments.clips, frames=1 + 4 * -(-arguments.frames // 4), size=size
    )
    require_measurable(rows, config)
    with HeldSignals() as signals, signals.let_in():
        report = evaluate(rows, config, control_reader(config, networks), arguments.out)
    say(report.to_markdown())
    print(json.dumps(report.as_dict()))


def _rows(texts: list[str], nfe: int) -> list[Row]:
    """Rows of texts `NAME=MODEL[:NFE]`; each model is loaded once."""
    parsed = [_parse_row(text, nfe) for text in texts]
    models = {
        source: StreamModel.from_pretrained(source) for source in dict.fromkeys(source for _, source, _ in parsed)
    }
    return [Row(name, models[source], evaluations) for name, source, evaluations in parsed]


def _parse_row(text: str, nfe: int) -> tuple[str, str, int]:
    name, equals, source = text.partition("=")
    before, colon, last = source.rpartition(":")
    if colon and last.isdecimal():
        source, nfe = before, int(last)
    require(bool(name and equals and source), "row", "NAME=MODEL or NAME=MODEL:NFE", text)
    return name, source, nfe
