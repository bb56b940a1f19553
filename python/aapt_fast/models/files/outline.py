# SPDX-License-Identifier: Apache-2.0
"""Size, heads and control of a model of this package, from the header of its file.

No torch is needed, as the command line asks before it imports that. `model_file.read_configs` reads everything that
the header says, with torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from aapt_fast.models.files.recognise import LARGEST_HEADER


@dataclass(frozen=True)
class Outline:
    """Video size, heads and number of joints of a model, which a video, its ranks and its poses have to fit."""

    size: tuple[int, int]
    """Height and width of a video frame in pixels."""
    heads: int
    """Heads of the attention, which ranks share among them."""
    joints: int | None
    """Joints of a pose; None for a model that no poses drive."""


def read_outline(file: Path) -> Outline | None:
    """The outline of a file of `write_model`; None for a header that `read_model` will refuse."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(min(length, LARGEST_HEADER)))
        configs = json.loads(header["__metadata__"]["config"])
        generator, scale = configs["generator"], 2 ** len(configs["vae"]["decoder_widths"])
        height, width = (scale * int(cells) for cells in generator["grid"])
        heads, control = int(generator["heads"]), generator.get("control")
        joints = int(control["joints"]) if control is not None and control["kind"] == "pose" else None
    except (KeyError, TypeError, ValueError):
        return None
    return Outline((height, width), heads, joints)
