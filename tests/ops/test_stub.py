# SPDX-License-Identifier: Apache-2.0
"""The committed stub is what `make stubs` writes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import aapt_fast
from aapt_fast.testing.targets import EMULATED_BUILD

SCRIPT = Path(__file__).parents[2] / "cmake" / "stubs.py"


def test_the_stub_says_what_the_module_has():
    pytest.importorskip("pybind11_stubgen")
    spec = importlib.util.spec_from_file_location("stubs", SCRIPT)
    stubs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stubs)
    committed = Path(aapt_fast.__file__).parent / "_C.pyi"
    assert committed.read_text() == stubs.stub_of(EMULATED_BUILD), "run `make stubs`"
