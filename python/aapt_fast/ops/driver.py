# SPDX-License-Identifier: Apache-2.0
"""The driver of the GPUs against the CUDA runtime inside the compiled module.

A driver runs runtimes of its own major version of CUDA and of older ones. With a newer runtime every launch would fail,
so the two are compared before the first one. The version of a driver is the newest CUDA that it knows, such as 12.4.
That of the runtime is the one of the compiler: CMake links the static runtime of the compiler's own toolkit.
"""

from __future__ import annotations

import re
from types import ModuleType

import torch

Version = tuple[int, int]


def driver_cuda() -> Version | None:
    """The newest CUDA version that the driver of this machine knows; None from a torch without CUDA."""
    ask = getattr(torch._C, "_cuda_getDriverVersion", None)
    if ask is None:
        return None
    number = ask()  # 12040 for 12.4
    return number // 1000, number % 1000 // 10


def runtime_cuda(module: ModuleType) -> Version | None:
    """The version of CUDA that a compiled module was built with; None for one without."""
    found = re.match(r"(\d+)\.(\d+)", module.build_info().get("cuda_version", ""))
    return None if found is None else (int(found[1]), int(found[2]))


def driver_obstacle(module: ModuleType) -> str | None:
    """The reason why the driver cannot run kernels of a compiled module, with the remedy, or None."""
    runtime = runtime_cuda(module)
    if runtime is None:
        return None
    driver = driver_cuda()
    if driver is None or driver[0] >= runtime[0]:
        return None
    return (
        f"the driver of this GPU is for CUDA up to {_text(driver)}, and the compiled module, built with CUDA "
        f"{_text(runtime)}, needs one for CUDA {runtime[0]}.0 or newer"
    )


def _text(version: Version) -> str:
    return ".".join(map(str, version))
