# SPDX-License-Identifier: Apache-2.0
"""Measure models against the exact truth: drift, control, Frechet distance, dynamic degree, mirror test, latency."""

from __future__ import annotations

import argparse
import dataclasses
import json

from aapt_fast.cli.checks import parse_row
from aapt_fast.cli.signals import HeldSignals
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.progress import say, without_messages
from aapt_fast.training.data import ClipSetConfig
from aapt_fast.training.evaluate import Row, clips_kept, evaluate, require_measurable
from aapt_fast.training.recipes import HELD_OUT_SETS, control_reader, describe_reader


def run(arguments: argparse.Namespace) -> None:
    networks = arguments.pose_network.expanduser()
    rows = _rows(arguments.row or [f"model={arguments.model or 'mini-person'}"], arguments.nfe)
    size = rows[0].model.video_size[0]
    config: ClipSetConfig = dataclasses.replace(
        HELD_OUT_SETS[arguments.held_out], clips=arguments.clips, frames=1 + 4 * -(-arguments.frames // 4), size=size
    )
    require_measurable(rows, config)
    with HeldSignals() as signals, signals.let_in(), without_messages(arguments.quiet):
        what = ", ".join(f"{row.name} ({row.nfe} per step)" for row in rows)
        clips = f"{config.clips} clips ({config.name}) of {config.frames - 1} video frames"
        say(f"to measure, with evaluations: {what}; {clips}")
        reader = None
        try:
            reader = control_reader(config, networks)
            report = evaluate(rows, config, reader, arguments.out)
        except KeyboardInterrupt as stop:
            measured = "measurements are only kept with --out"
            if arguments.out is not None:
                done = clips_kept(rows, config, reader, arguments.out)
                measured = f"{done} of {config.clips} clips are measured and kept in {arguments.out}"
            state = f"{describe_reader(config, networks)}; {measured}"
            raise KeyboardInterrupt(f"{stop}; {state}. The same command resumes from what is kept.") from None
    say(report.to_markdown())
    print(json.dumps(report.as_dict()))


def _rows(texts: list[str], nfe: int) -> list[Row]:
    """Rows of texts `NAME=MODEL[:NFE]`; each model is loaded once."""
    parsed = [parse_row(text, nfe) for text in texts]
    models = {
        source: StreamModel.from_pretrained(source) for source in dict.fromkeys(source for _, source, _ in parsed)
    }
    return [Row(name, models[source], evaluations) for name, source, evaluations in parsed]
