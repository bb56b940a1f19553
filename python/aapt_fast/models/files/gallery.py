# SPDX-License-Identifier: Apache-2.0
"""The gallery.json beside a model's file. No torch, so that the command line finds mistakes at once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aapt_fast.errors import CheckpointError
from aapt_fast.models.files.find import model_path
from aapt_fast.models.files.recognise import MODELS, recognise, refusal


@dataclass(frozen=True)
class Gallery:
    """Content of a gallery.json."""

    index: Path
    """The file itself; its pictures lie beside it."""
    world: str
    entries: list[Any]
    """A mapping with image, pose and identity for each first frame."""

    def damaged(self, error: Exception) -> CheckpointError:
        """Make the error for an entry that lacks something."""
        return _damaged(self.index, error)


def read_gallery(path: str | Path, argument: str = "path") -> Gallery | None:
    """The gallery of a model by its name, file or folder; None for a model without one.

    Raises ValueError, naming `argument`, for a name under which there is nothing, CheckpointError for a damaged gallery
    and for a file that is no model.
    """
    file = model_path(path, argument)
    if recognise(file).kind not in MODELS:
        raise refusal(file, "a model")
    index = file.with_name("gallery.json")
    if not index.is_file():
        return None
    try:
        content = json.loads(index.read_text())
        return Gallery(index, str(content["world"]), list(content["first_frames"]))
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise _damaged(index, error) from error


def _damaged(index: Path, error: Exception) -> CheckpointError:
    expected = "a gallery with its world, and image, pose and identity of each first frame"
    return CheckpointError(f"{index}: expected {expected}, got {error!r}")
