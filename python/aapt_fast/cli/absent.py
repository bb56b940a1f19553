# SPDX-License-Identifier: Apache-2.0
"""Words for a path of the command line under which there is nothing."""

from __future__ import annotations

import os
from pathlib import Path

from aapt_fast.errors import require
from aapt_fast.models.files.recognise import recognise


def require_there(argument: str, expected: str, path: str | Path) -> None:
    """Raise ValueError unless there is something under `path`: it is empty, a URL, begins with ~, or does not exist."""
    text = str(path)
    require(text != "", argument, expected, "an empty text")
    if not os.path.exists(text):
        found = recognise(text)
        known = found.kind == "URL" or text.startswith("~")
        require(False, argument, expected, f"{text}: {found}" if known else f"{text}, which does not exist")
