# SPDX-License-Identifier: Apache-2.0
"""The package itself: its public names come when they are used, and type checkers see the same ones."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import aapt_fast

SOURCE = ast.parse(Path(aapt_fast.__file__).read_text())


def test_dir_lists_the_public_names() -> None:
    assert dir(aapt_fast) == sorted(aapt_fast.__all__)


@pytest.mark.parametrize("name", aapt_fast.__all__)
def test_every_public_name_is_there(name: str) -> None:
    value = getattr(aapt_fast, name)
    assert name == "__version__" or value.__module__.startswith("aapt_fast.")


def test_unknown_names_are_attribute_errors() -> None:
    assert not hasattr(aapt_fast, "sample_video")
    with pytest.raises(AttributeError, match="module 'aapt_fast' has no attribute 'sample_video'"):
        aapt_fast.sample_video  # noqa: B018


def test_type_checkers_see_the_same_names_in_the_same_modules() -> None:
    seen = {
        f"{alias.asname}": node.module
        for branch in SOURCE.body
        if isinstance(branch, ast.If)
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == aapt_fast._MODULES


def test_the_import_brings_no_torch() -> None:
    program = "import sys, aapt_fast; aapt_fast.__version__; dir(aapt_fast); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


NO_TORCH = "import sys; sys.modules['torch'] = None; "


def test_without_torch_a_sentence_says_so() -> None:
    program = NO_TORCH + "import aapt_fast; aapt_fast.StreamModel"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith("ImportError: aapt_fast needs PyTorch 2.9 or newer")
    program = NO_TORCH + "from aapt_fast.cli import main; sys.exit(main(['doctor']))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("aapt-fast doctor: aapt_fast needs PyTorch 2.9 or newer")
