# SPDX-License-Identifier: Apache-2.0
"""Procedural worlds with exact ground truth: data for training, truth for evaluation, live control for streams."""

from __future__ import annotations

from aapt_fast.worlds.person.world import PersonWorld
from aapt_fast.worlds.world import World

WORLDS: dict[str, World] = {"person": PersonWorld()}
"""Worlds by the name in a model's gallery.json; a new one is listed here."""
