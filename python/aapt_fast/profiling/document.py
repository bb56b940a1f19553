# SPDX-License-Identifier: Apache-2.0
"""Documents of measurements, as `profiling.schema` has them: this machine, then lists of entries.

A run may be several processes, one after the other: each opens the document and adds to it. A document with a path is
on the disk whenever a method returns, so a run that is killed keeps what it had.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from aapt_fast.atomic import replacing
from aapt_fast.errors import require
from aapt_fast.profiling.schema import SCHEMA, SECTIONS, read_document
from aapt_fast.profiling.timing import Sample

DTYPE_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
CHECKOUT = Path(__file__).parents[3]


class Document:
    """A document, and the file it lives in if it has a path.

    Args:
        content: ready for JSON.
        path: every method that changes the content writes this file anew, atomically; None keeps it in memory.
    """

    def __init__(self, content: dict[str, Any], path: Path | None = None) -> None:
        self.content, self.path = content, path

    @staticmethod
    def new(command: str, path: Path | None = None, **more: Any) -> Document:
        """Begin a document about this machine; `more` replaces or adds fields, for example commit or rehearsal."""
        document = Document({**head(command), **more}, path)
        document.save()
        return document

    @staticmethod
    def open(path: Path, command: str) -> Document:
        """Read the document in `path`, or begin one. Raises ValueError for damaged JSON and for another schema."""
        return Document(read_document(path), path) if path.exists() else Document.new(command, path)

    def add(self, section: str, entry: dict[str, Any]) -> None:
        """Append an entry to a list. Raises ValueError for a list that is none of `SECTIONS`."""
        require(section in SECTIONS, "section", f"one of {', '.join(SECTIONS)}", section)
        self.content[section].append(entry)
        self.save()

    def set(self, **fields: Any) -> None:
        """Replace fields."""
        self.content.update(fields)
        self.save()

    def fail(self, name: str, what_ran: str, reason: object) -> str:
        """Note that something gave no number. Returns the reason, on one line."""
        words = f"{type(reason).__name__}: {reason}" if isinstance(reason, BaseException) else str(reason)
        line = " ".join(words.split())[:500]
        self.add("failures", {"name": name, "what_ran": what_ran, "reason": line})
        return line

    def note_clocks(self, when: str) -> None:
        """Note what nvidia-smi says of clocks, temperature and power; `when` is for example "before frame"."""
        self.add("clocks", {"when": when, "clocks": ask_gpu("clocks.sm,clocks.mem,temperature.gpu,power.draw")})

    def line(self) -> str:
        """The document as one line of JSON."""
        return json.dumps(self.content, allow_nan=False)

    def save(self) -> None:
        """Write the file: a reader sees the old content or the new, never a part."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as partial, partial.open("w") as file:
            json.dump(self.content, file, indent=1, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())


def head(command: str) -> dict[str, Any]:
    """Describe this machine, with empty lists."""
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
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,
        },
        "ceilings": {},
        **{section: [] for section in SECTIONS},
    }


def result(
    name: str,
    sample: Sample,
    what_ran: str,
    *,
    baseline: str | None = None,
    ratio: float | None = None,
    tflops: float | None = None,
    share_of_ceiling: float | None = None,
    **more: Any,
) -> dict[str, Any]:
    """An entry of `results`.

    Args:
        name: for example frame/aapt-8b/736x416/bf16.
        sample: the times.
        what_ran: the system, in words.
        baseline: the `what_ran` of the system it is compared with.
        ratio: the baseline's time over this one; above 1 means faster.
        tflops: the rate of the work.
        share_of_ceiling: the least time that the ceilings of the run allow, over this one.
        more: further fields.
    """
    compared = {"tflops": tflops, "share_of_ceiling": share_of_ceiling, "baseline": baseline, "ratio": ratio}
    return {"name": name, **sample.as_dict(), **compared, "what_ran": what_ran, **more}


def gpu() -> dict[str, Any] | None:
    """Describe the present GPU by what torch says, or None without one."""
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
    """Ask nvidia-smi about torch's current GPU; None where it does not answer. No setting is changed.

    nvidia-smi counts all GPUs of the machine, torch those that CUDA_VISIBLE_DEVICES shows, so the GPU goes by its UUID.
    Where torch sees none, the answer is about the first one.
    """
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    if torch.cuda.is_available():
        command.append(f"--id=GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}")
    return _answer(command)


def commit(checkout: Path = CHECKOUT) -> str:
    """Name the commit of the checkout, with a plus if tracked files changed; outside of one the package's version."""
    git = ["git", "-C", str(checkout)]
    name = _answer([*git, "rev-parse", "--short", "HEAD"]) if (checkout / "csrc").is_dir() else None
    if name:
        return name + ("+" if _answer([*git, "status", "--porcelain", "-uno"]) else "")
    return f"version {package_version()}"


def package_version() -> str:
    """Version of the installed package; "unknown" for a source tree that was never installed."""
    try:
        return version("aapt_fast")
    except PackageNotFoundError:
        return "unknown"


def _answer(command: list[str]) -> str | None:
    """The first line that a program prints, or None if it is missing, fails or prints nothing."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = ended.stdout.splitlines()
    return lines[0].strip() if ended.returncode == 0 and lines else None
