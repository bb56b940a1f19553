# SPDX-License-Identifier: Apache-2.0
"""The one kind of document that GPU runs leave behind, schema 1 of bench/README.md.

A run is several processes, one after the other. Each opens the document, adds to it, and has saved it whenever a method
returns: a run that is killed keeps what it had.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

SCHEMA = 1
ROOT = Path(__file__).parents[2]

HEAD = ("schema", "gpu", "driver", "torch", "commit", "command", "date")
SECTIONS = ("results", "measurements", "verified", "failures", "stages", "clocks")
RESULT_FIELDS = (
    "name",
    "p50_ms",
    "p95_ms",
    "p99_ms",
    "tflops",
    "share_of_ceiling",
    "baseline",
    "ratio",
    "cold_l2",
    "what_ran",
)
MEASUREMENT_FIELDS = ("name", "value", "unit", "predicted", "verdict", "what_ran")
VERIFIED_FIELDS = ("kernel", "architecture", "hash", "passed")


class Document:
    """A document and the file it lives in. Every method that changes it writes the file anew, atomically."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path, self.content = path, content

    @staticmethod
    def create(path: Path, command: str, commit: str | None = None, rehearsal: bool = False) -> Document:
        """Begin a document about this machine. `rehearsal`: its timings mean nothing, and reports leave it out."""
        document = Document(path, head(command, commit))
        if rehearsal:
            document.content["rehearsal"] = True
        document.save()
        return document

    @staticmethod
    def open(path: Path, command: str) -> Document:
        """The document in `path`, or a new one if there is none. Raises ValueError for another schema."""
        if not path.exists():
            return Document.create(path, command)
        content = json.loads(path.read_text())
        if content.get("schema") != SCHEMA:
            raise ValueError(f"{path}: expected schema {SCHEMA}, got {content.get('schema')!r}")
        return Document(path, content)

    def add(self, section: str, entry: dict[str, Any]) -> None:
        """Append an entry to one of the lists. Raises ValueError if it lacks a field of the schema."""
        wrong = problems_of_entry(section, entry)
        if wrong:
            raise ValueError(f"{section}: {'; '.join(wrong)}")
        self.content.setdefault(section, []).append(entry)
        self.save()

    def set(self, section: str, value: Any) -> None:
        """Replace a section."""
        self.content[section] = value
        self.save()

    def fail(self, name: str, what_ran: str, reason: object) -> None:
        """Something that was tried gave no number: the reason in words, on one line."""
        words = f"{type(reason).__name__}: {reason}" if isinstance(reason, BaseException) else str(reason)
        self.add("failures", {"name": name, "what_ran": what_ran, "reason": " ".join(words.split())[:500]})

    def save(self) -> None:
        """Write the file: a reader, or whoever comes after a crash, sees the old content or the new, never a part."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(self.content, file, indent=1, allow_nan=False)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, self.path)
        except BaseException:
            os.unlink(name)
            raise


def head(command: str, commit: str | None = None) -> dict[str, Any]:
    """The fields that say what this machine is, and the empty lists."""
    return {
        "schema": SCHEMA,
        "gpu": gpu(),
        "driver": nvidia_smi("driver_version"),
        "torch": torch.__version__,
        "commit": commit or commit_of(ROOT),
        "command": command,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": {
            "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} threads",
            "python": platform.python_version(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,
        },
        "ceilings": {},
        **{section: [] for section in SECTIONS},
    }


def gpu() -> dict[str, Any] | None:
    """What torch says about the GPU, or None without one."""
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


def nvidia_smi(query: str) -> str | None:
    """The answer of nvidia-smi about the first GPU, or None where it does not answer. It is only asked, never told."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.splitlines()[0].strip() if answer.returncode == 0 and answer.stdout.strip() else None


def clocks() -> str | None:
    """Clocks, temperature and power now, or None without nvidia-smi."""
    return nvidia_smi("clocks.sm,clocks.mem,temperature.gpu,power.draw")


def commit_of(checkout: Path) -> str:
    """The short commit of a checkout, with a plus if tracked files have changed; "unknown" outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


FIELDS = {"results": RESULT_FIELDS, "measurements": MEASUREMENT_FIELDS, "verified": VERIFIED_FIELDS}


def problems_of_entry(section: str, entry: dict[str, Any]) -> list[str]:
    """What schema 1 objects to in an entry of a list."""
    if section not in SECTIONS:
        return [f"expected a section out of {', '.join(SECTIONS)}, got {section}"]
    wrong = [f"lacks {field}" for field in FIELDS.get(section, ()) if field not in entry]
    if section == "results" and not wrong:
        times = [entry[field] for field in ("p50_ms", "p95_ms", "p99_ms")]
        if not all(isinstance(time, float) for time in times) or not 0 < times[0] <= times[1] <= times[2]:
            wrong.append(f"expected 0 < p50_ms <= p95_ms <= p99_ms, got {times}")
    return wrong


def problems(content: dict[str, Any]) -> list[str]:
    """What schema 1 objects to in a document, [] for a good one."""
    if content.get("schema") != SCHEMA:
        return [f"expected schema {SCHEMA}, got {content.get('schema')!r}"]
    found = [f"lacks {field}" for field in HEAD if field not in content]
    for section in SECTIONS:
        if not isinstance(content.get(section), list):
            found.append(f"{section}: expected a list, got {type(content.get(section)).__name__}")
            continue
        for number, entry in enumerate(content[section]):
            found += [f"{section}[{number}]: {wrong}" for wrong in problems_of_entry(section, entry)]
    return found
