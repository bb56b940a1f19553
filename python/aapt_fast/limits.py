# SPDX-License-Identifier: Apache-2.0
"""Memory and disk of this machine, and checks that a command fits them before any work begins."""

from __future__ import annotations

import os
import shutil
import tempfile
from decimal import Decimal
from errno import ENAMETOOLONG
from pathlib import Path
from typing import TYPE_CHECKING

from aapt_fast.atomic import behind_links, require_replaceable
from aapt_fast.errors import require

if TYPE_CHECKING:  # the command line answers --help without torch
    import torch

MEMINFO = Path("/proc/meminfo")
CONTAINER = Path("/sys/fs/cgroup")  # of a container, or of the whole system, which has no memory.max
LONGEST_NAME = 220  # bytes of the name of a result; systems allow 255, and the hidden file beside it has a longer one
UNITS = ("bytes", "KB", "MB", "GB", "TB", "PB")  # 1000 of one are one of the next


def available_memory() -> int | None:
    """Bytes of memory that can still be taken, in a container with a limit those within it; None if unknown."""
    known = [count for count in (_of_the_system(), _of_the_container()) if count is not None]
    return min(known, default=None)


def memory_left(device: torch.device) -> int | None:
    """Bytes that can still be taken, on a GPU with those that torch holds there without using them; None if unknown."""
    import torch

    if device.type == "cpu":
        return available_memory()
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return None


def require_memory(argument: str, needed: int) -> None:
    """Raise ValueError unless `needed` bytes of memory are available; `argument` is what makes them so many."""
    available = available_memory()
    if available is not None:
        fits = f"a value that fits into the {in_units(available)} of memory that are available"
        require(needed <= available, argument, fits, f"one that needs {in_units(needed)}")


def require_disk(argument: str, path: Path, needed: int) -> None:
    """Raise ValueError unless `needed` bytes are free on the disk of `path`, which need not exist yet."""
    there = _there(path)
    place = there if there.is_dir() else there.parent
    free = shutil.disk_usage(place).free
    fits = f"a value that fits into the {in_units(free)} that are free on the disk of {place}"
    require(needed <= free, argument, fits, f"one that needs {in_units(needed)}")


def require_file_target(argument: str, path: Path) -> None:
    """Raise ValueError for a folder, a device or a name that is too long, OSError if no file can be made there."""
    require_short_name(argument, path)
    require_replaceable(argument, path)
    require_writable(argument, behind_links(path).parent)


def require_folder(argument: str, path: Path) -> None:
    """Raise ValueError unless `path` is a folder or can become one, OSError unless files can be made in it."""
    require_short_name(argument, path)
    place = _there(path)
    require(place.is_dir(), argument, "a folder, which may be new", f"{path}, where {place} is a file")
    require_writable(argument, place)


def require_empty_folder(argument: str, path: Path) -> None:
    """Raise ValueError unless `path` is an empty folder, or nothing yet."""
    require_short_name(argument, path)
    if path.exists():
        require(path.is_dir(), argument, "a new or empty folder", f"{path}, which is no folder")
        entries = sorted(entry.name for entry in path.iterdir())
        require(not entries, argument, "a new or empty folder", f"{path} with {', '.join(entries[:3])}")


def require_short_name(argument: str, path: Path) -> None:
    """Raise ValueError for a path that the system, or the hidden file beside it, finds too long."""
    length = len(os.fsencode(path.name))
    require(length <= LONGEST_NAME, argument, f"a name of at most {LONGEST_NAME} bytes", f"one of {length}")
    try:
        os.lstat(path)
    except OSError as error:
        too_long = error.errno == ENAMETOOLONG
        require(not too_long, argument, "a path that is not too long for this system", f"{len(str(path))} letters")


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


def in_units(count: int) -> str:
    """Bytes as text with three digits: in bytes, KB, MB, GB, TB or PB (10^3, 10^6, ... bytes)."""
    if abs(count) < 1000:
        return f"{count} {UNITS[0]}"
    if count >= 10**18:  # more than any disk: no name helps, and a float may be too small for it
        return f"{Decimal(count) / 10**15:.3g} {UNITS[-1]}"
    power = (len(str(abs(count))) - 1) // 3
    size = count / 1000**power
    digits = 2 if abs(size) < 10 else 1 if abs(size) < 100 else 0
    return f"{size:.{digits}f} {UNITS[power]}"


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
