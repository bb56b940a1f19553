# SPDX-License-Identifier: Apache-2.0
"""The package itself: its public names come when they are used, and type checkers see the same ones."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import aapt_fast
from aapt_fast.errors import OLDEST_TORCH, import_with_torch

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


OLD_TORCH = """
import importlib.abc, importlib.machinery, sys

class Old(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname, path, target=None):
        return importlib.machinery.ModuleSpec(fullname, self) if fullname == "torch" else None

    def exec_module(self, module):
        module.__version__ = "2.6.0+cu124"

sys.meta_path.insert(0, Old())
"""


def test_with_an_old_torch_a_sentence_says_what_to_install() -> None:
    sentence = "aapt_fast needs PyTorch 2.9 or newer, and 2.6.0+cu124 is installed here: pip install --upgrade torch"
    program = OLD_TORCH + "import aapt_fast; aapt_fast.StreamModel"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == f"ImportError: {sentence}"
    program = OLD_TORCH + "from aapt_fast.cli import main; sys.exit(main(['doctor']))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, f"aapt-fast doctor: {sentence}\n")


def test_an_old_torch_that_imports_is_still_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.8.1")
    with pytest.raises(ImportError, match=r"needs PyTorch 2\.9 or newer, and 2\.8\.1 is installed here"):
        import_with_torch("aapt_fast.ops.window")
    monkeypatch.setattr(torch, "__version__", "2.10.0a0+git123")
    assert import_with_torch("aapt_fast.ops.window").__name__ == "aapt_fast.ops.window"


def test_the_oldest_torch_is_the_one_that_pip_asks_for() -> None:
    assert f"torch>={OLDEST_TORCH[0]}.{OLDEST_TORCH[1]}" in (importlib.metadata.requires("aapt_fast") or [])


def test_the_public_names_need_no_extra() -> None:
    """torch, NumPy and the other declared dependencies are enough; what they import themselves may be more."""
    others = [
        "av",
        "diffusers",
        "fastapi",
        "matplotlib",
        "prometheus_client",
        "ray",
        "transformers",
        "uvicorn",
        "websockets",
    ]
    blocked = "; ".join(f"sys.modules[{name!r}] = None" for name in others)
    program = f"import sys; {blocked}; import aapt_fast; [getattr(aapt_fast, name) for name in aapt_fast.__all__]"
    subprocess.run([sys.executable, "-c", program], check=True)
