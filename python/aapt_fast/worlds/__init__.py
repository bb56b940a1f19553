# SPDX-License-Identifier: Apache-2.0
"""Procedural worlds with exact ground truth: data for training, truth for evaluation, live control for streams."""

from __future__ import annotations

from aapt_fast.errors import require
from aapt_fast.worlds.person.world import PersonWorld
from aapt_fast.worlds.world import World

WORLDS: dict[str, World] = {"person": PersonWorld()}
"""Worlds by the name in a model's gallery.json; a new one is listed here."""


def list_motions(world: str = "person") -> tuple[str, ...]:
    """Names that `play` of a player of that world takes, and a script, which may be "medley" as well.

    Raises ValueError for an unknown world.
    """
    require(world in WORLDS, "world", " | ".join(WORLDS), world)
    return WORLDS[world].actions
