# SPDX-License-Identifier: Apache-2.0
"""Builds the emulated module with a bug planted in a kernel, to see whether the tests notice.

A bug costs about a second: its source is compiled with a precompiled header, and its tests run in a fork of a process
that has loaded torch already (`planted_runs.py`).
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aapt_fast.testing.targets import EMULATED_BUILD

REPOSITORY = EMULATED_BUILD.parents[1]
CSRC = REPOSITORY / "csrc"

# Headers that no bug changes, most of the time that a kernel takes to compile.
PRECOMPILED = '#include <cute/layout.hpp>\n#include <cute/swizzle_layout.hpp>\n#include "common/arch.h"\n'

# Options of a kernel that tells the emulation of its accesses to memory.
TRACED: dict[bool, list[str]] = {False: [], True: ["-fsanitize=thread"]}


@dataclass(frozen=True)
class Bug:
    """A change of one source file of csrc/, and the tests that have to notice it."""

    what: str
    file: str  # below csrc/
    before: str  # occurs exactly once in the file
    after: str
    source: str  # the .cu or .cpp file below csrc/ that is compiled with the change
    tests: str  # file below tests/kernels/
    select: str = ""  # pytest -k: tests that use what `source` compiles
    traced: bool = False  # compiled so that the emulation sees each access to memory (csrc/emulate/trace.cpp)


class Planter:
    """Compiles sources of the emulation with a change, and links them with the rest of it.

    Args:
        folder: an empty folder for what all bugs share.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        entries = json.loads((EMULATED_BUILD / "compile_commands.json").read_text())
        self._entries = {Path(entry["file"]): entry for entry in entries if "probes" not in entry["output"]}
        self._headers: dict[bool, Path] = {}

    def plant(self, bug: Bug, folder: Path) -> Path:
        """Write a module with the bug to `folder` and return the folder.

        Raises ValueError if the text to change does not occur exactly once, and RuntimeError with the compiler's words
        if the changed source does not compile.
        """
        text = (CSRC / bug.file).read_text()
        if text.count(bug.before) != 1:
            raise ValueError(f"{bug.file}: expected the text to change once, got it {text.count(bug.before)} times")
        changed = folder / "csrc" / bug.file
        changed.parent.mkdir(parents=True)
        changed.write_text(text.replace(bug.before, bug.after))

        source = changed if bug.source == bug.file else CSRC / bug.source
        entry = self._entries[CSRC / bug.source]
        compiler, *options = _options(entry)
        if source.suffix == ".cu":
            options += ["-O1", *TRACED[bug.traced], "-include", str(self._precompiled(bug.traced))]
        else:
            options += ["-O0"]  # most of its time goes into pybind11
        # Includes find the changed file first, whatever includes it.
        _run([compiler, f"-I{folder / 'csrc'}", *options, "-o", str(folder / "changed.o"), "-c", str(source)])
        objects = [other["output"] for other in self._entries.values() if other is not entry]
        module = next(EMULATED_BUILD.glob("_C.*.so")).name
        _run([compiler, "-shared", "-o", str(folder / module), str(folder / "changed.o"), *objects])
        return folder

    def _precompiled(self, traced: bool) -> Path:
        """The precompiled header for kernels, with the options of one that includes CUTLASS: others need no more."""
        if traced not in self._headers:
            header = self._folder / f"precompiled_{traced}.h"
            header.write_text(PRECOMPILED)
            entry = next(entry for entry in self._entries.values() if "cutlass" in entry["command"])
            options = [*_options(entry), "-O1", *TRACED[traced]]
            _run([*options, "-x", "c++-header", "-o", f"{header}.gch", "-c", str(header)])
            self._headers[traced] = header
        return self._headers[traced]


def _options(entry: dict[str, str]) -> list[str]:
    """Compiler and options of an entry of compile_commands.json, without files."""
    command = shlex.split(entry["command"])
    return command[: command.index("-o")]


def _run(command: list[str]) -> None:
    result = subprocess.run(command, cwd=EMULATED_BUILD, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{shlex.join(command)}:\n{result.stderr}")


class Runs:
    """Runs tests of tests/kernels on modules, one after the other, in forks of one process."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "aapt_fast.testing.planted_runs"]
        self._process = subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Runs:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.communicate()

    def pass_(self, module_folder: Path, tests: str, select: str, seconds: float = 120) -> bool:
        """Run tests of tests/kernels on the module in `module_folder`, up to the first failure.

        False if a test failed, the process crashed or did not end in time. Raises RuntimeError if no test ran.
        """
        arguments = [
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            f"tests/kernels/{tests}",
            *(["-k", select] if select else []),
        ]
        status, output = self._ask({"arguments": arguments, "folder": str(module_folder), "seconds": seconds})
        if status > 1:  # 1: tests failed; above: pytest was used wrongly; below 0: a signal
            raise RuntimeError(f"pytest {shlex.join(arguments)} (status {status}):\n{output}")
        return status == 0

    def _ask(self, request: dict[str, Any]) -> tuple[int, str]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return answer["status"], answer["output"]
