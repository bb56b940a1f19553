# SPDX-License-Identifier: Apache-2.0
"""The parts of ComfyUI that nodes call: its device, progress bar, preview and cancel button.

They are looked up when a node runs. Outside of ComfyUI, in a test for example, there are none, and nothing is shown.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import torch
from PIL import Image
from torch import Tensor

LARGEST_PREVIEW = 512  # pixels of a side, to which ComfyUI reduces


def chosen_device() -> torch.device:
    """The device that ComfyUI computes on, as far as this package can use it; outside of ComfyUI torch's choice."""
    management = _found("comfy.model_management")
    if management is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device: torch.device = management.get_torch_device()
    return device if device.type == "cuda" else torch.device("cpu")


class Progress:
    """The bar of the running node, for `total` steps. It shows the newest picture."""

    def __init__(self, total: int) -> None:
        utils = _found("comfy.utils")
        self._bar: Any = None if utils is None else utils.ProgressBar(total)
        self._management = _found("comfy.model_management")

    def update(self, done: int, picture: Tensor) -> None:
        """Show that `done` steps are taken, and the last video frame, uint8 [H, W, 3].

        Raises ComfyUI's exception if the user has cancelled the run.
        """
        if self._management is not None:
            self._management.throw_exception_if_processing_interrupted()
        if self._bar is not None:
            preview = ("JPEG", Image.fromarray(picture.cpu().numpy()), LARGEST_PREVIEW)
            self._bar.update_absolute(done, preview=preview)


def _found(name: str) -> ModuleType | None:
    """A module of ComfyUI, which has loaded it before any node; None outside of it."""
    return sys.modules.get(name)
