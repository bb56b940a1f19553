# SPDX-License-Identifier: Apache-2.0
"""Measure a person model against the exact truth: drift curves, baselines, mirror test."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from aapt_fast.models.checkpoint import load_model
from aapt_fast.training.evaluate import HELD_OUT, evaluate_person, to_markdown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", default="mini-person", help="a bundled model or a file")
    parser.add_argument("--out", type=Path, help="folder for CSV, Markdown and contact sheets")
    parser.add_argument("--clips", type=int, default=HELD_OUT.clips)
    parser.add_argument("--nfe", type=int, default=1, help="network evaluations per step")


def run(arguments: argparse.Namespace) -> None:
    config = dataclasses.replace(HELD_OUT, clips=arguments.clips)
    report = evaluate_person(load_model(arguments.model), arguments.out, config, arguments.nfe)
    print(to_markdown(report))
    print(json.dumps(report))
