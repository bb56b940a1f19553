# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all, and errors that name them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EDQUOT, EFBIG, EIO, ENOSPC
from pathlib import Path

NO_ROOM = (ENOSPC, EDQUOT, EFBIG, EIO)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside `path`, of the same ending, to write a file to. Its file becomes `path` at the end.

    After an error it is removed, and `path` stays as it was. A full disk is an OSError that names `path`.
    """
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        with naming(path):
            yield partial
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name `path` in the error of a full or broken disk inside of the `with` block: the system's names no file."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        named = OSError(f"{path}: cannot be written: {error.strerror}")
        named.errno = error.errno
        raise named from error
