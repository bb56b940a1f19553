# SPDX-License-Identifier: Apache-2.0
"""Train a model from nothing by one of the recipes; goes on where it was stopped."""

from __future__ import annotations

import argparse
from pathlib import Path

from aapt_fast.training.recipes import MAIN_STAGES, RECIPES, STAGES, train


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run: data, checkpoints, logs, samples")
    parser.add_argument("--stage", choices=STAGES, action="append", help="only this stage (may be repeated)")


def run(arguments: argparse.Namespace) -> None:
    train(RECIPES[arguments.recipe], arguments.out, tuple(arguments.stage or MAIN_STAGES))
