# SPDX-License-Identifier: Apache-2.0
"""Where the tests of the compiled kernels run: on the emulated machine, or on a GPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from aapt_fast.ops._load import extension
from aapt_fast.ops.kernels import stream_of, use_kernels, view

EMULATED_BUILD = Path(__file__).parents[3] / "build" / "emulated"
"""Where `make emulated` builds, seen from a checkout."""


@dataclass(frozen=True)
class Target:
    """A compiled module and the device its kernels run on."""

    name: str
    device: torch.device
    module: ModuleType

    @contextmanager
    def kernels(self, *names: str, schedule: int = 0) -> Iterator[None]:
        """Run these kernels ("all" if none is named) inside the block; `schedule` is the seed of the emulation."""
        if self.name == "emulated":
            self.module.set_schedule(schedule)
        with use_kernels(*(names or ("all",)), extension=self.module):
            yield

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function of the module directly, below the checks of its op; tensors [...] are passed as views."""
        views = [view(x) if isinstance(x, torch.Tensor) else x for x in arguments]
        getattr(self.module, function)(*views, stream_of(self.device))


def emulated(folder: Path = EMULATED_BUILD) -> Target:
    """The emulation that was built in `folder`. Raises RuntimeError if there is none."""
    found = sorted(folder.glob("_C.*.so"))
    if not found:
        raise RuntimeError(f"expected the emulated kernels in {folder}, got none: run `make emulated`")
    spec = importlib.util.spec_from_file_location("aapt_fast_emulated._C", found[0])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Target("emulated", torch.device("cpu"), module)


def cuda() -> Target:
    """The installed module on the current GPU. Raises RuntimeError if there is none."""
    if not torch.cuda.is_available():
        raise RuntimeError("expected a GPU and a torch with CUDA, got none")
    return Target("cuda", torch.device("cuda", torch.cuda.current_device()), extension())
