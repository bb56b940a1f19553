# SPDX-License-Identifier: Apache-2.0
"""The emulated module, and modules with planted faults around it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from aapt_fast.ops.kernels import KERNELS


@pytest.fixture
def module_file(request: pytest.FixtureRequest) -> Path:
    """The file of the emulated module."""
    return next(Path(request.config.getoption("--emulated-build")).glob("_C.*.so"))


@pytest.fixture
def planted(module_file: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Give the file of a module that is the emulated one, `real`, but for the functions that a source defines."""

    def plant(source: str) -> Path:
        file = tmp_path / "planted.py"
        functions = "\n".join(
            f"if hasattr(real, {kernel.function!r}):\n    {kernel.function} = real.{kernel.function}"
            for kernel in KERNELS.values()
        )
        file.write_text(
            "import ctypes, os, time\n"
            "from pathlib import Path\n"
            "from aapt_fast.ops._load import load_file\n"
            f"real = load_file(Path({str(module_file)!r}))\n"
            "build_info, Unsupported = real.build_info, real.Unsupported\n"
            f"{functions}\n{source}\n"
        )
        return file

    return plant


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"
