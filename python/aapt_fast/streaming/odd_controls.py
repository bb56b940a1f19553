# SPDX-License-Identifier: Apache-2.0
"""Warnings of controls that nothing in the world of a model can have, such as a tracker that has lost its person."""

from __future__ import annotations

from torch import Tensor

from aapt_fast.errors import warn_caller
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.worlds.control_values import read_numbers


class OddControls:
    """Warns the user of a session of odd controls, once for each kind. A model without a world has none."""

    def __init__(self, model: StreamModel) -> None:
        self._model = model
        self._told: set[str] = set()

    def look_at(self, values: Tensor, argument: str = "control") -> None:
        """Give a UserWarning, naming `argument`, if `values` [entries, J, 3] or [entries, C, h, w] are odd."""
        odd = self._model.odd_controls(values)
        if odd is not None and odd.kind not in self._told:
            self._told.add(odd.kind)
            warn_caller(f"{argument}: {odd}; more of this kind are not reported")

    def look_at_image(self, control: object) -> None:
        """The same for the control of the first picture, one entry [J, 3] or [C, h, w] as users give it; or None."""
        config = self._model.control
        if control is not None and config is not None and config.with_previous:
            self.look_at(read_numbers(control, "image_control").float()[None], "image_control")
