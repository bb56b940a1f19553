# SPDX-License-Identifier: Apache-2.0
"""Importing the original repositories from checkouts of them, for `pytest tests/integrations --originals FOLDER`.

All of them call their packages `wan`, `utils` and so on, so one is imported at a time and forgotten again. The import
of `wan` itself needs a GPU and packages that nothing here uses. So single modules are imported from their folders, and
a few others that they import in passing (the text encoder, memory of the GPU) are empty.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

from torch import nn

ROOTS = ("wan", "utils", "pipeline", "demo_utils", "easydict")
OPENED = ("wan", "wan.modules", "wan.configs", "pipeline")
EMPTY = ("wan.modules.t5", "wan.modules.tokenizers", "demo_utils.memory")


class Settings(dict):
    """A dictionary whose entries are attributes too, for their configurations, in place of the package easydict."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__  # type: ignore[assignment]


class Checkout:
    """The modules of one original repository while it is open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, name: str) -> ModuleType:
        """A module of it, by its name there."""
        return import_module(name)

    def replace(self, obj: Any, name: str, value: Any) -> None:
        """Set an attribute of something of theirs, which is forgotten with the checkout."""
        setattr(obj, name, value)


def random_weights(module: nn.Module) -> nn.Module:
    """The module with weights under which values neither vanish nor grow, ready for inference."""
    for name, parameter in module.named_parameters():
        if "gamma" in name or (".norm" in name and name.endswith("weight")):
            nn.init.normal_(parameter, 1.0, 0.1)
        elif parameter.dim() == 1:
            nn.init.normal_(parameter, std=0.1)
        elif "modulation" in name:
            nn.init.normal_(parameter, std=0.3)
        else:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return module.eval().requires_grad_(False)


@contextmanager
def opened(folder: Path) -> Iterator[Checkout]:
    """Imports of `wan` and the like come from the checkout in `folder` as long as the block lasts."""
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in ROOTS}
    sys.path.insert(0, str(folder))
    sys.modules["easydict"] = SimpleNamespace(EasyDict=Settings)  # type: ignore[assignment]
    for name in OPENED:
        package = sys.modules[name] = ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")))]
    for name in EMPTY:
        sys.modules[name] = MagicMock(name=name)
    try:
        yield Checkout(folder)
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.split(".")[0] in ROOTS]:
            del sys.modules[name]
        sys.modules.update(before)
