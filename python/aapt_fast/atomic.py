# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all, with ordinary permissions, and errors that name them."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EDQUOT, EFBIG, EIO, ENOSPC
from pathlib import Path

from aapt_fast.errors import require

NO_ROOM = (ENOSPC, EDQUOT, EFBIG, EIO)
STREAMS = ("/dev/stdin", "/dev/stdout", "/dev/stderr", "/dev/fd/", "/proc/")
"""Names of open files. One that the shell has sent to a file looks like that file."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside `path`, of its ending, to write a file to. Its file becomes `path` at the end.

    Of a symbolic link the file behind it is replaced. The result has the permissions of the file that it replaces, and
    of a new file those that `open(path, "w")` gives. After an error the file that was written to is removed, and `path`
    stays as it was. A full disk is an OSError that names `path`. Raises ValueError for a folder and a device.
    """
    require_replaceable(str(path), path)
    target = behind_links(path)
    partial = partial_name(target, path.suffix)
    try:
        with naming(path):
            with partial.open("xb"):
                mode = mode_of(target) or mode_of(partial)
            yield partial
            assert mode is not None  # `partial` was there
            partial.chmod(mode)  # libraries make files that only their owner can read
            os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def partial_name(path: Path, ending: str) -> Path:
    """A name beside `path`, hidden, with this ending, and unlike that of any other process."""
    return path.with_name(f".{path.stem}.partial-{secrets.token_hex(4)}{ending}")


def behind_links(path: Path) -> Path:
    """The file that a symbolic link leads to, which need not exist; another path as it is."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def mode_of(path: Path) -> int | None:
    """Permissions of what is there; None where nothing is."""
    return path.stat().st_mode & 0o7777 if path.exists() else None


def names_folder(text: str) -> bool:
    """True for the text of a path that can name a folder only, which `Path` forgets: it ends in a slash or a dot."""
    return os.path.basename(text) in ("", ".", "..")


def require_replaceable(argument: str, path: Path) -> None:
    """Raise ValueError, naming `argument`, for a folder, and for devices, pipes and sockets, which no file replaces."""
    require(not path.is_dir(), argument, "a file", f"the folder {path}")
    other = os.path.abspath(path).startswith(STREAMS) or (path.exists() and not path.is_file())
    require(not other, argument, "a file", f"{path}, which is a device, a pipe or a socket")
    require(not behind_links(path).is_symlink(), argument, "a file", f"{path}, a symbolic link that leads to itself")


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
