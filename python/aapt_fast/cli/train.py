# SPDX-License-Identifier: Apache-2.0
"""Train a model by one of the recipes, from nothing or from another model; a stopped run resumes."""

from __future__ import annotations

import argparse
import dataclasses

from aapt_fast.cli.choices import OWN
from aapt_fast.cli.device import usable_device
from aapt_fast.cli.signals import HeldSignals
from aapt_fast.distributed import launch
from aapt_fast.progress import without_messages
from aapt_fast.training.own_videos import own_recipe
from aapt_fast.training.place import Place, join
from aapt_fast.training.recipes import RECIPES
from aapt_fast.training.stages import MAIN_STAGES, train
from aapt_fast.training.trial import trial_of


def run(arguments: argparse.Namespace) -> None:
    if arguments.gpus > 1 and not launch.started_by_torchrun():
        launch.run(arguments.gpus, ["-m", "aapt_fast", *arguments.argv])
        return
    own = arguments.recipe == OWN
    recipe = own_recipe(arguments.data, arguments.skip_faults) if own else RECIPES[arguments.recipe]
    if arguments.start is not None:
        recipe = dataclasses.replace(recipe, start=arguments.start)
    if arguments.codec is not None:
        recipe = dataclasses.replace(recipe, codec=None, vae=arguments.codec)
    if arguments.trial:
        recipe = trial_of(recipe)
    device = usable_device(arguments.device)
    place = join(device.type) if launch.started_by_torchrun() else Place(device)
    quiet = arguments.quiet or not place.is_first
    with HeldSignals() as signals, signals.let_in(), without_messages(quiet):
        train(recipe, arguments.out, tuple(arguments.stage or MAIN_STAGES), signals.hold, place)
    launch.end()
