# SPDX-License-Identifier: Apache-2.0
"""A document of schema 1 (bench/README.md) about this machine, for a program that is installed.

`bench/harness/document.py` writes the same kind of document, file by file, on machines where only torch is installed
yet, so it imports nothing from here; a test holds what both write to the one schema.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

SCHEMA = 1
LISTS = ("results", "measurements", "verified", "failures", "stages", "clocks")
CHECKOUT = Path(__file__).parents[3]


def new_document(command: str) -> dict[str, Any]:
    """The fields that say what this machine is, and the empty lists."""
    return {
        "schema": SCHEMA,
        "gpu": gpu(),
        "driver": ask_gpu("driver_version"),
        "torch": torch.__version__,
        "commit": commit(),
        "command": command,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": {
            "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} threads",
            "python": platform.python_version(),
            "cuda": torch.version.cuda,
        },
        "ceilings": {},
        **{name: [] for name in LISTS},
    }


def seconds_since_process_start() -> float | None:
    """How long this process has lived, imports included; None where the system does not say it as Linux does."""
    try:
        words = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        up = float(Path("/proc/uptime").read_text().split()[0])
    except OSError:
        return None
    started = int(words[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5), after boot
    return up - started


def gpu() -> dict[str, Any] | None:
    """What torch says about the present GPU, or None without one."""
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
    }


def ask_gpu(query: str) -> str | None:
    """nvidia-smi's answer about the first GPU, or None where it does not answer. It is only asked, never told."""
    return _answer(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"])


def clocks() -> str | None:
    """Clocks, temperature and power now, or None without nvidia-smi."""
    return ask_gpu("clocks.sm,clocks.mem,temperature.gpu,power.draw")


def commit() -> str:
    """The commit of the checkout this package runs from, with a plus if tracked files changed; else its version."""
    if (CHECKOUT / "csrc").is_dir():
        git = ["git", "-C", str(CHECKOUT)]
        name = _answer([*git, "rev-parse", "--short", "HEAD"])
        if name:
            return name + ("+" if _answer([*git, "status", "--porcelain", "-uno"]) else "")
    try:
        return f"version {version('aapt_fast')}"
    except PackageNotFoundError:
        return "unknown"


def save(path: Path, document: dict[str, Any]) -> None:
    """Write a document: a reader sees what was there before or all of it, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(document, file, indent=1, allow_nan=False)
            file.write("\n")
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


def _answer(command: list[str]) -> str | None:
    """The first line that a program prints, or None if it is not there, fails or says nothing."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = result.stdout.splitlines()
    return lines[0].strip() if result.returncode == 0 and lines else None
