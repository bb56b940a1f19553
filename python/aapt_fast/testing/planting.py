# SPDX-License-Identifier: Apache-2.0
"""Builds the emulated module with a bug planted in a kernel, to see whether the tests notice."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from aapt_fast.testing.targets import EMULATED_BUILD

REPOSITORY = EMULATED_BUILD.parents[1]


@dataclass(frozen=True)
class Bug:
    """A change of one source file of csrc/, and where it has to show."""

    what: str
    file: str  # below csrc/
    before: str  # occurs exactly once in the file
    after: str
    source: str  # the .cu file below csrc/ that is compiled with the change
    tests: str  # file below tests/kernels/
    select: str = ""  # pytest -k: tests that use what `source` compiles


def plant(bug: Bug, folder: Path) -> Path:
    """Write a copy of csrc/ with the bug to `folder`, compile `bug.source`, and link it with the rest of the emulation.

    Returns the folder with the module. Raises ValueError if the text to change does not occur exactly once and
    RuntimeError with the compiler's words if the changed source does not compile.
    """
    csrc = folder / "csrc"
    shutil.copytree(REPOSITORY / "csrc", csrc)
    text = (csrc / bug.file).read_text()
    if text.count(bug.before) != 1:
        raise ValueError(f"{bug.file}: expected the text to change exactly once, got {text.count(bug.before)} times")
    (csrc / bug.file).write_text(text.replace(bug.before, bug.after))

    original = REPOSITORY / "csrc" / bug.source
    commands = json.loads((EMULATED_BUILD / "compile_commands.json").read_text())
    entry = next(entry for entry in commands if Path(entry["file"]) == original)
    built = Path(entry["output"]) if Path(entry["output"]).is_absolute() else EMULATED_BUILD / entry["output"]
    changed = folder / "changed.o"
    command = [part.replace(str(REPOSITORY / "csrc"), str(csrc)) for part in shlex.split(entry["command"])]
    command[command.index("-o") + 1] = str(changed)
    _run(command, EMULATED_BUILD)

    targets = [path for path in EMULATED_BUILD.glob("CMakeFiles/*.dir") if "probes" not in path.name]
    objects = [path for target in targets for path in target.rglob("*.o") if not path.samefile(built)]
    module = next(EMULATED_BUILD.glob("_C.*.so")).name
    _run([command[0], "-shared", "-o", str(folder / module), str(changed), *map(str, objects)], folder)
    return folder


def _run(command: list[str], folder: Path) -> None:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{shlex.join(command)}:\n{result.stderr}")


def passes(module_folder: Path, tests: str, select: str, seconds: float = 120) -> bool:
    """Run tests of tests/kernels on the module in `module_folder`, up to the first failure.

    False if a test failed, the process crashed or did not end in time. Raises RuntimeError if no test ran.
    """
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"tests/kernels/{tests}"]
    command += ["--emulated-build", str(module_folder), *(["-k", select] if select else [])]
    try:
        result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return False
    if result.returncode > 1:  # 1: tests failed; above: pytest was used wrongly; below 0: a signal
        raise RuntimeError(f"{shlex.join(command)} (status {result.returncode}):\n{result.stdout}\n{result.stderr}")
    return result.returncode == 0
