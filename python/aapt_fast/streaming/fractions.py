# SPDX-License-Identifier: Apache-2.0
"""The rule that tells poses in fractions of a frame from poses in pixels. For tensors and arrays, and without torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from aapt_fast.errors import require

if TYPE_CHECKING:  # the command line checks files of poses without torch
    import numpy
    from torch import Tensor

NEAR = (-1.0, 2.0)  # where most joints of a pose lie, up to a frame's width outside of it


def require_fractions(argument: str, places: Tensor | numpy.ndarray) -> None:
    """Raise ValueError for x and y [..., 2] that must be pixels: more than half of them outside of -1..2."""
    if ((places < NEAR[0]) | (places > NEAR[1])).sum() * 2 > math.prod(places.shape):
        expected = "x and y as fractions of width and height, mostly in 0..1"
        got = f"values from {float(places.min()):g} to {float(places.max()):g} (pixels?)"
        require(False, argument, expected, got)
