# SPDX-License-Identifier: Apache-2.0
"""Worlds: data for training, truth for evaluation, live control for streams. Procedural ones, and one's own videos.

The worlds are imported when `WORLDS` is first used: the command line reads scripts of motions without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aapt_fast.errors import require

if TYPE_CHECKING:
    from aapt_fast.worlds.world import World

    WORLDS: dict[str, World]


def __getattr__(name: str) -> Any:
    if name != "WORLDS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = worlds = _make_worlds()
    return worlds


def _make_worlds() -> dict[str, World]:
    """Worlds by the name in a model's gallery.json; a new one is listed here."""
    from aapt_fast.worlds.filmed.world import FilmedWorld
    from aapt_fast.worlds.person.world import PersonWorld
    from aapt_fast.worlds.rooms.world import RoomsWorld

    worlds: tuple[World, ...] = (PersonWorld(), RoomsWorld(), RoomsWorld(cell=8), FilmedWorld())
    return {world.name: world for world in worlds}


def list_motions(world: str = "person") -> tuple[str, ...]:
    """Names that `play` of a player of that world takes, and a script, which may be "medley" as well.

    Raises ValueError for an unknown world.
    """
    from aapt_fast.worlds import WORLDS

    require(world in WORLDS, "world", " | ".join(WORLDS), world)
    return WORLDS[world].actions
