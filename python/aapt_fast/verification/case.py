# SPDX-License-Identifier: Apache-2.0
"""One op at one shape: the package's kernels and their competitors, checked against each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import TypeAlias

import torch
from torch import Tensor

from aapt_fast.ops.kernels import KERNELS, Selection, obstacle, use_kernels
from aapt_fast.profiling.document import DTYPE_NAMES
from aapt_fast.verification.compare import require_agreement, require_finite

Result: TypeAlias = Tensor | tuple[Tensor, ...]
System = Callable[[], Result]


@dataclass(frozen=True)
class Setting:
    """Device, dtype and module of a case."""

    device: torch.device
    dtype: torch.dtype = torch.bfloat16
    compiled: bool = True  # also the baselines through torch.compile
    extension: ModuleType | None = None  # None: aapt_fast._C
    kernels: tuple[str, ...] = tuple(KERNELS)  # that may be among the systems

    def randn(self, *shape: int) -> Tensor:
        """Make random numbers [*shape]."""
        return self.randn32(*shape).to(self.dtype)

    def randn32(self, *shape: int) -> Tensor:
        """Make random numbers [*shape] in float32."""
        return torch.randn(shape, device=self.device)


@dataclass
class Case:
    """The systems that do the same work.

    The first system that runs is the oracle of all others, except of those in `other_numbers`.
    """

    op: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    flops: float
    """FLOP of the work itself."""
    moved_bytes: float
    """Bytes of the work itself: every input read and every output written once."""
    systems: dict[str, System] = field(default_factory=dict)
    ours: list[str] = field(default_factory=list)
    """Systems that are kernels of the package; the others are baselines."""
    other_numbers: set[str] = field(default_factory=set)
    """Systems whose results cannot be compared."""
    elsewhere: set[str] = field(default_factory=set)
    """Systems that cannot stand in for the op: other libraries, and those whose inputs lie otherwise."""
    unavailable: dict[str, str] = field(default_factory=dict)
    """Systems that this machine does not have, with the reason."""

    @property
    def label(self) -> str:
        """Shape and dtype, such as 1196x35880x24x128/bf16."""
        return f"{'x'.join(map(str, self.shape))}/{DTYPE_NAMES[self.dtype]}"

    def add_op(self, setting: Setting, call: System) -> None:
        """Add the op as torch ops and with each of its kernels; `call` calls the op."""
        self.add_composition(setting, call)
        self.add_kernels(setting, call)

    def add_composition(self, setting: Setting, call: System) -> None:
        """Add the op as torch ops; `call` calls the op."""
        self.systems[f"torch composition of {self.op}, eager"] = partial(_with_kernels, setting, "none", call)

    def add_kernels(self, setting: Setting, call: System) -> None:
        """Add each kernel of the op, or the reason why it cannot run here; `call` calls the op."""
        for kernel, why in obstacles(setting.extension, setting.device).items():
            if kernel.split("/")[0] != self.op or kernel not in setting.kernels:
                continue
            if why is not None:
                self.unavailable[kernel] = why
                continue
            self.systems[kernel] = partial(_with_kernels, setting, kernel, call)
            self.ours.append(kernel)

    def add_plain(self, setting: Setting, call: System) -> None:
        """Add what a user of torch would write: eager and, if the setting says so, through torch.compile."""
        self.systems["plain torch, eager"] = call
        if setting.compiled:
            self.systems["plain torch, torch.compile"] = torch.compile(call, dynamic=False)


def obstacles(extension: ModuleType | None, device: torch.device) -> dict[str, str | None]:
    """Give the reason why each kernel cannot run on a device, or None. `extension` None means `aapt_fast._C`."""
    return {name: obstacle(kernel, device, Selection((name,), extension)) for name, kernel in KERNELS.items()}


def _with_kernels(setting: Setting, name: str, call: System) -> Result:
    with use_kernels(name, extension=setting.extension):
        return call()


@torch.no_grad()
def check(case: Case) -> tuple[dict[str, System], dict[str, str | Exception]]:
    """Run every system once.

    Returns:
        The systems that run and agree with the oracle, and for all others, unavailable ones included, the reason.
    """
    running: dict[str, System] = {}
    failures: dict[str, str | Exception] = dict(case.unavailable)
    expected: list[Tensor] | None = None
    for system, call in case.systems.items():
        try:
            results = _tensors(call())
            if system not in case.other_numbers:
                if expected is None:
                    require_finite(results)
                    expected = [tensor.clone() for tensor in results]
                else:
                    require_agreement(results, expected, case.dtype)
        except Exception as error:  # a library that does not take this shape is a finding, too
            failures[system] = error
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # raises again where the context did not survive
            continue
        running[system] = call
    return running, failures


def _tensors(result: Result) -> Sequence[Tensor]:
    return result if isinstance(result, tuple) else (result,)
