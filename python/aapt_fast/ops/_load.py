# SPDX-License-Identifier: Apache-2.0
"""The compiled module `aapt_fast._C`, loaded on first use.

Importing the package needs no compiled module: every op has a torch reference. A module that was never built is
reported as absent; one that was built but does not load is an error, never a quiet fallback.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

_NAME = "aapt_fast._C"


@functools.cache
def extension_or_none() -> ModuleType | None:
    """The compiled module, or None when it was not built. Raises `RuntimeError` when it exists but does not load."""
    try:
        return importlib.import_module(_NAME)
    except ModuleNotFoundError as error:
        if error.name != _NAME:
            raise
        return None
    except ImportError as error:
        raise RuntimeError(
            f"{_NAME}: expected a module built for this machine, got {error}. "
            "Rebuild it here: run `pip install .` in a checkout of aapt_fast."
        ) from error


def load_file(file: Path) -> ModuleType:
    """Load a module from a file, outside of any package.

    The folder is in its name, as pybind11 takes two modules of one name for the same. The last part of the name is that
    of the file, by which Python finds the start of compiled code.
    """
    spec = importlib.util.spec_from_file_location(f"{file.parent}.{file.name.partition('.')[0]}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def extension() -> ModuleType:
    """The compiled module. Raises `RuntimeError` saying how to get it when it was not built or does not load."""
    module = extension_or_none()
    if module is None:
        raise RuntimeError(absence())
    return module


def absence(package: Path = Path(__file__).parents[1]) -> str:
    """Say why the folder `package` has no compiled module for this Python, and how to get one."""
    own = f"_C{EXTENSION_SUFFIXES[0]}"
    others = ", ".join(path.name for path in sorted(package.glob("_C.*.so")) if path.name != own)
    if others:
        python = f"Python {sys.version_info[0]}.{sys.version_info[1]}"
        return (
            f"{_NAME}: expected the compiled module for {python}, got that of another Python, {others}. Install the "
            f"wheel for {python}, or run `pip install .` with it in a checkout of aapt_fast."
        )
    return (
        f"{_NAME}: expected the compiled module, got none. Build it: run `pip install .` in a checkout of "
        "aapt_fast (a C++ compiler is enough; with nvcc it includes the CUDA code)."
    )
