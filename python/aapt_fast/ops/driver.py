# SPDX-License-Identifier: Apache-2.0
"""The driver and the GPU against the compiled module, before the first launch.

A driver runs CUDA runtimes of its own major version and of older ones; with a newer runtime every launch would fail.
The version of a driver is the newest CUDA that it knows, such as 12.4. That of the runtime is the one of the compiler:
CMake links the static runtime of the compiler's own toolkit.

A GPU without machine code in the module runs its PTX, which the driver compiles when a kernel is first used. For that
the driver has to know all of the CUDA version that wrote the PTX, not just its major version.
"""

from __future__ import annotations

import re
from types import ModuleType

import torch

Version = tuple[int, int]
"""A version of CUDA, or the compute capability of a GPU."""


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


def driver_obstacle(module: ModuleType, device: torch.device) -> str | None:
    """The reason why the driver cannot run kernels of a compiled module on a GPU, with the remedy, or None."""
    runtime, driver = runtime_cuda(module), driver_cuda()
    if runtime is None or driver is None or driver >= runtime:
        return None
    if driver[0] < runtime[0]:
        return (
            f"the driver of this GPU is for CUDA up to {_text(driver)}, and the compiled module, built with CUDA "
            f"{_text(runtime)}, needs one for CUDA {runtime[0]}.0 or newer"
        )
    machine_code, ptx = _architectures(module)
    capability = torch.cuda.get_device_capability(device)
    if not ptx or _has(machine_code, capability):
        return None
    return (
        f"this GPU, of compute capability {_text(capability)}, needs PTX, which its driver, for CUDA up to "
        f"{_text(driver)}, cannot compile: that of the compiled module takes one for CUDA {_text(runtime)} or newer"
    )


def code_obstacle(module: ModuleType, device: torch.device) -> str | None:
    """The reason why a compiled module has no code that a GPU runs, or None."""
    machine_code, ptx = _architectures(module)
    if not machine_code + ptx:
        return None
    capability = torch.cuda.get_device_capability(device)
    if _has(machine_code, capability) or any(capability >= oldest for oldest in ptx):
        return None
    written = module.build_info()["cuda_archs"]
    return f"the compiled module has code for {written}, none for this GPU of compute capability {_text(capability)}"


def _architectures(module: ModuleType) -> tuple[list[Version], list[Version]]:
    """Compute capabilities of the machine code, and of the PTX, of kernels that are not for Hopper alone."""
    written = module.build_info().get("cuda_archs", "")  # such as 80-real,90-real,80-virtual,90a-real

    def of(kind: str) -> list[Version]:
        return [(int(major), int(minor)) for major, minor in re.findall(rf"(\d+)(\d)-{kind}", written)]

    return of("real"), of("virtual")


def _has(machine_code: list[Version], capability: Version) -> bool:
    """True if a GPU runs some of the machine code: that of its own major version that is not newer."""
    return any(major == capability[0] and minor <= capability[1] for major, minor in machine_code)


def _text(version: Version) -> str:
    return ".".join(map(str, version))
