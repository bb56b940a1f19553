# SPDX-License-Identifier: Apache-2.0
"""Command lines of the scripts in bench/: `--out`, the document, and the exit status of a machine without a GPU."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import torch

from aapt_fast.profiling.document import Document, commit

ROOT = Path(__file__).parents[2]
NO_GPU = 3
"""Exit status of a script that needs a GPU where there is none."""


def parser(description: str | None) -> argparse.ArgumentParser:
    """Make a parser with `--out`; the description is printed as it is written."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, help="document to write or to add to (default: printed as the last line)")
    return made


def open_document(path: Path | None) -> Document:
    """Open or begin the document of `--out`; without a path a new one in memory."""
    command = shlex.join(["python", "-m", f"bench.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    if path is not None and path.exists():
        return Document.open(path, command)
    return Document.new(command, path, commit=commit(ROOT))


def finish(document: Document) -> None:
    """Print the document as the last line, unless it is in a file."""
    if document.path is None:
        print(document.line())


def current_device(can_run_anywhere: bool, trial: str) -> torch.device:
    """Return the GPU, or the CPU where `can_run_anywhere`; else end the process with status 3 and name a `trial`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not can_run_anywhere:
        print(f"no GPU: these times need one. {trial} tries the program out on any machine.")
        sys.exit(NO_GPU)
    return device
