# SPDX-License-Identifier: Apache-2.0
"""Arrays on disk that are filled row by row, by several processes; a stopped filling resumes with the missing rows."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aapt_fast.atomic import naming
from aapt_fast.limits import require_disk
from aapt_fast.training.files import write_text


@dataclass(frozen=True)
class Rows:
    """Arrays `NAME.KEY.npy` of `count` rows each, in a folder, and `NAME.json`, which appears once all rows are there.

    Until then `NAME.begun.json` says what the rows are, and `NAME.there.npy` which of them are there.

    Args:
        folder, name: where the arrays are.
        card: JSON values that tell these rows from any other; rows of another card are replaced.
        count: number of rows.
        arrays: dtype and shape of a row by the key of its array.
    """

    folder: Path
    name: str
    card: Mapping[str, Any]
    count: int
    arrays: Mapping[str, tuple[str, tuple[int, ...]]]

    @property
    def complete(self) -> bool:
        """True once `finish` was called."""
        return self._has_card("json")

    @property
    def there(self) -> int:
        """Number of the rows that are there; begins nothing."""
        if self.complete or not self._has_card("begun.json"):
            return self.count * self.complete
        return int(np.load(self.path("there.npy")).sum())

    def begin(self) -> list[int]:
        """Make room for all rows, unless that was done before; gives the numbers of those that are not there.

        Raises ValueError naming `count`, and OSError, if the disk has no room.
        """
        if not (self.complete or self._has_card("begun.json")):
            require_disk(f"{self.name}: count", self.folder, self.nbytes)
            self.folder.mkdir(parents=True, exist_ok=True)
            for ending in ("json", "begun.json"):
                self.path(ending).unlink(missing_ok=True)
            for key, (dtype, shape) in {**self.arrays, "there": ("bool", ())}.items():
                path = self.path(f"{key}.npy")
                np.lib.format.open_memmap(path, "w+", np.dtype(dtype), (self.count, *shape)).flush()
                if hasattr(os, "posix_fallocate"):  # a full disk is an error here, and a killed process later
                    with naming(path), path.open("r+b") as file:
                        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            write_text(self.path("begun.json"), json.dumps(self.card))
        return [] if self.complete else np.flatnonzero(~np.load(self.path("there.npy"))).tolist()

    def write(self, row: int, **values: np.ndarray) -> None:
        """Keep the values of a row, by the key of their array; may be called by any process."""
        for key, value in {**values, "there": np.array(True)}.items():  # in this order: a row is there once it is whole
            array = np.load(self.path(f"{key}.npy"), mmap_mode="r+")
            array[row] = value
            array.flush()

    def finish(self) -> None:
        """Declare all rows to be there."""
        write_text(self.path("json"), json.dumps(self.card))
        for ending in ("begun.json", "there.npy"):
            self.path(ending).unlink(missing_ok=True)

    def path(self, ending: str) -> Path:
        """The file with this ending."""
        return self.folder / f"{self.name}.{ending}"

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self.count * sum(np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in self.arrays.values())

    def _has_card(self, ending: str) -> bool:
        arrays = [f"{key}.npy" for key in self.arrays] + (["there.npy"] if ending == "begun.json" else [])
        if not all(self.path(each).exists() for each in (ending, *arrays)):
            return False
        return json.loads(self.path(ending).read_text()) == json.loads(json.dumps(self.card))
