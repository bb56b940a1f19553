# SPDX-License-Identifier: Apache-2.0
"""Train a model by one of the recipes, from nothing or from another model; a stopped run resumes."""

from __future__ import annotations

import argparse
import dataclasses

from aapt_fast.cli.signals import HeldSignals
from aapt_fast.progress import without_messages
from aapt_fast.training.recipes import RECIPES
from aapt_fast.training.stages import MAIN_STAGES, train
from aapt_fast.training.trial import trial_of


def run(arguments: argparse.Namespace) -> None:
    recipe = RECIPES[arguments.recipe]
    if arguments.start is not None:
        recipe = dataclasses.replace(recipe, start=arguments.start)
    if arguments.trial:
        recipe = trial_of(recipe)
    with HeldSignals() as signals, signals.let_in(), without_messages(arguments.quiet):
        train(recipe, arguments.out, tuple(arguments.stage or MAIN_STAGES), signals.hold)
