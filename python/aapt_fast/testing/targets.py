# SPDX-License-Identifier: Apache-2.0
"""Machines that run the tests of the compiled kernels: the emulated one, or a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from aapt_fast.ops._load import extension, load_file
from aapt_fast.ops.kernels import stream_of, use_kernels, view

EMULATED_BUILD = Path(__file__).parents[3] / "build" / "emulated"
"""Build folder of `make emulated`, seen from a checkout."""


@dataclass(frozen=True)
class Target:
    """Compiled modules and the device their kernels run on."""

    name: str
    device: torch.device
    module: ModuleType
    probes: ModuleType | None  # csrc/probes; None: not built

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

    def probe(
        self,
        name: str,
        inputs: Sequence[torch.Tensor],
        outputs: Sequence[torch.Tensor],
        values: Sequence[int] = (),
        schedule: int = 0,
    ) -> None:
        """Run a probe of csrc/probes on tensors [...]; `schedule` is the seed of the emulation.

        Raises RuntimeError where the probes were not built, and for what the emulation reports.
        """
        if self.probes is None:
            raise RuntimeError("expected the module _probes, got none: build with AAPT_PROBES=ON")
        if self.name == "emulated":
            self.probes.set_schedule(schedule)
        arrays = [list(map(view, tensors)) for tensors in (inputs, outputs)]
        getattr(self.probes, name)(*arrays, list(values), stream_of(self.device))

    def why_not_hopper(self) -> str | None:
        """Why kernels for Hopper cannot run here, or None if they can."""
        if self.name == "emulated":
            return None
        major, minor = torch.cuda.get_device_capability(self.device)
        name = torch.cuda.get_device_name(self.device)
        return None if major == 9 else f"needs compute capability 9.0, {name} has {major}.{minor}"


def emulated(folder: Path = EMULATED_BUILD) -> Target:
    """The emulation that was built in `folder`. Raises RuntimeError if there is none."""
    found = {name: sorted(folder.glob(f"{name}.*.so")) for name in ("_C", "_probes")}
    if not found["_C"]:
        raise RuntimeError(f"expected the emulated kernels in {folder}, got none: run `make emulated`")
    module = load_file(found["_C"][0])
    probes = load_file(found["_probes"][0]) if found["_probes"] else None
    return Target("emulated", torch.device("cpu"), module, probes)


def cuda() -> Target:
    """The installed modules on the current GPU. Raises RuntimeError if there is none."""
    if not torch.cuda.is_available():
        raise RuntimeError("expected a GPU and a torch with CUDA, got none")
    module = extension()
    built = sorted(Path(str(module.__file__)).parent.glob("_probes.*.so"))
    probes = load_file(built[0]) if built else None
    return Target("cuda", torch.device("cuda", torch.cuda.current_device()), module, probes)
