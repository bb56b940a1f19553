# SPDX-License-Identifier: Apache-2.0
"""Memory and disk of this machine, and checks that a command fits them before any work begins."""

from __future__ import annotations

import os
import shutil
import tempfile
from decimal import Decimal
from pathlib import Path

from aapt_fast.errors import require

MEMINFO = Path("/proc/meminfo")
CONTAINER = Path("/sys/fs/cgroup")  # of a container, or of the whole system, which has no memory.max


def available_memory() -> int | None:
    """Bytes of memory that can still be taken, in a container with a limit those within it; None if unknown."""
    known = [count for count in (_of_the_system(), _of_the_container()) if count is not None]
    return min(known, default=None)


def require_memory(argument: str, needed: int) -> None:
    """Raise ValueError unless `needed` bytes of memory are available; `argument` is what makes them so many."""
    available = available_memory()
    if available is not None:
        fits = f"a value that fits into the {in_gb(available)} of memory that are available"
        require(needed <= available, argument, fits, f"one that needs {in_gb(needed)}")


def require_disk(argument: str, path: Path, needed: int) -> None:
    """Raise ValueError unless `needed` bytes are free on the disk of `path`, which need not exist yet."""
    free = shutil.disk_usage(_there(path)).free
    fits = f"a value that fits into the {in_gb(free)} that are free on the disk of {path}"
    require(needed <= free, argument, fits, f"one that needs {in_gb(needed)}")


def require_file_target(argument: str, path: Path) -> None:
    """Raise ValueError for a folder or a device, OSError if files cannot be made in the folder of the file `path`."""
    require(not path.is_dir(), argument, "a file", f"the folder {path}")
    device = path.exists() and not path.is_file()  # a file of that name would replace it
    require(not device, argument, "a file", f"{path}, which is a device, a pipe or a socket")
    require_writable(argument, path.parent)


def require_folder(argument: str, path: Path) -> None:
    """Raise ValueError unless `path` is a folder or can become one, OSError unless files can be made in it."""
    place = _there(path)
    require(place.is_dir(), argument, "a folder, which may be new", f"{path}, where {place} is a file")
    require_writable(argument, place)


def require_empty_folder(argument: str, path: Path) -> None:
    """Raise ValueError unless `path` is an empty folder, or nothing yet."""
    if path.exists():
        require(path.is_dir(), argument, "a new or empty folder", f"{path}, which is no folder")
        entries = sorted(entry.name for entry in path.iterdir())
        require(not entries, argument, "a new or empty folder", f"{path} with {', '.join(entries[:3])}")


def require_writable(argument: str, folder: Path) -> None:
    """Raise OSError unless `folder` exists and files can be made in it; a file without a name is made to find out."""
    if not folder.is_dir():
        why = "which is a file" if folder.exists() else "which does not exist"
        raise OSError(f"{argument}: expected a folder that exists, got {folder}, {why}")
    try:
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:  # rights say nothing about a read-only disk, nor about the superuser in /proc
        reason = "no file can be made in it" if isinstance(error, FileNotFoundError) else error.strerror
        raise OSError(f"{argument}: expected a folder that can be written to, got {folder}: {reason}") from error


def in_gb(count: int) -> str:
    """Bytes as text in GB (10^9 bytes), with at least three digits."""
    size = Decimal(count) / 10**9  # no float, which may be too small for it
    return f"{size:,.0f} GB" if 1000 <= size < 10**9 else f"{size:.3g} GB"


def _there(path: Path) -> Path:
    """The path itself, or the innermost folder around it, that exists."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def _of_the_system() -> int | None:
    if MEMINFO.exists():
        for line in MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _of_the_container() -> int | None:
    """The rest of the limit of a control group, version 2; file contents in memory count as free."""
    limit, used, details = (CONTAINER / f"memory.{name}" for name in ("max", "current", "stat"))
    if not (limit.exists() and used.exists() and details.exists()) or limit.read_text().strip() == "max":
        return None
    files = [
        int(line.split()[1])
        for line in details.read_text().splitlines()
        if line.startswith(("inactive_file ", "active_file "))
    ]
    return int(limit.read_text()) - int(used.read_text()) + sum(files)
