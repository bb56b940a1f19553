# SPDX-License-Identifier: Apache-2.0
"""Names of results that replace nothing by mistake."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from aapt_fast.atomic import behind_links


class Destination:
    """A path of a result in the making: remembers what is there now, which may be replaced, unlike what comes later.

    Of a symbolic link `path` is the file or folder behind it, and other names are beside that.
    """

    def __init__(self, path: Path) -> None:
        self.path = behind_links(path)
        self._before = _state(self.path)

    def name(self) -> Path:
        """The path for a complete result: x.mp4; if another program has made that meanwhile, x-2.mp4 and so on."""
        return self.path if _is_free(self.path) or _state(self.path) == self._before else _beside(self.path, "")

    def name_if_stopped(self, broken: bool = False) -> Path:
        """The path for the beginning of a result, which replaces nothing: x.mp4, x.stopped.mp4, x.stopped-2.mp4, ...

        One that could not be completed, `broken`, never gets the name of a complete result.
        """
        return self.path if _is_free(self.path) and not broken else _beside(self.path, ".stopped")


def _is_free(path: Path) -> bool:
    """True if nothing is there, or an empty folder where a folder is to be."""
    return not path.exists() or (not path.suffix and path.is_dir() and not any(path.iterdir()))


def _beside(path: Path, word: str) -> Path:
    endings = itertools.chain([word] if word else [], (f"{word}-{number}" for number in itertools.count(2)))
    names = (path.with_name(f"{path.stem}{ending}{path.suffix}") for ending in endings)
    return next(name for name in names if not name.exists())


def _state(path: Path) -> tuple[int, int, int] | None:
    """Numbers that tell a file or folder from a later one of its name; None where nothing is."""
    if not path.exists():
        return None
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_mtime_ns
