# SPDX-License-Identifier: Apache-2.0
"""Writes the stub of the compiled module: `python cmake/stubs.py build/emulated` prints it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HEADER = '''\
# SPDX-License-Identifier: Apache-2.0
"""The compiled module. Import it through `aapt_fast.ops._load`, which says what to do when it is missing.

Made by `make stubs` from the emulated build. Kernels, `Unsupported` and `dtypes` are in builds with CUDA and in the
emulation. A kernel checks everything before it launches anything: ValueError for arguments that mean nothing,
Unsupported for those that this kernel does not do, RuntimeError when the launch fails.
"""

from collections.abc import Sequence
from typing import TypeAlias

View: TypeAlias = tuple[int, int, Sequence[int], Sequence[int]]
"""A tensor: address, dtype code, shape, strides in elements."""
Stream: TypeAlias = tuple[int, int]
"""Device index and stream handle."""

'''

ALIASES = {
    "tuple[int, int, typing.Sequence[int], typing.Sequence[int]]": "View",
    "tuple[int, int]": "Stream",
    "typing.SupportsInt | typing.SupportsIndex": "int",
    "typing.SupportsFloat | typing.SupportsIndex": "float",
    "collections.abc.Sequence": "Sequence",
}


def stub_of(build: Path) -> str:
    """Text of the stub of the module `_C` in the folder `build`."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pybind11_stubgen", "_C", "--output-dir", folder]
        paths = os.pathsep.join(filter(None, [str(build), os.environ.get("PYTHONPATH")]))
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": paths})
        text = (Path(folder) / "_C.pyi").read_text()
    for long, short in ALIASES.items():
        text = text.replace(long, short)
    text = text[text.index("class Unsupported") :]
    text = re.sub(r"^def .*:$", lambda found: "\n" + _wrapped(found[0]), text, flags=re.MULTILINE)
    text = text.replace("\n__version__", "\n\n__version__")
    text = re.sub(r'"""\n    (.*)\n    """', r'"""\1"""', text)
    return HEADER + re.sub(r"^(__version__|dtypes): (\w+) = .*$", r"\1: \2", text, flags=re.MULTILINE)


def _wrapped(line: str) -> str:
    """A definition with one argument a line, where it is too long for one line."""
    if len(line) <= 120:
        return line
    start, arguments, end = re.fullmatch(r"(def \w+\()(.*)(\) -> .*:)", line).groups()
    return "\n".join([start, *(f"    {argument}," for argument in arguments.split(", ")), end])


if __name__ == "__main__":
    print(stub_of(Path(sys.argv[1])), end="")
