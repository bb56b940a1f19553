# SPDX-License-Identifier: Apache-2.0
"""What is wrong with the installation, and what to type: one sentence per fault."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import aapt_fast
from aapt_fast.ops._load import absence, extension_or_none
from aapt_fast.ops.driver import driver_obstacle
from aapt_fast.ops.kernels import GPU_WITHOUT_CUDA, KERNELS, no_kernel_runs, record_for, selection
from aapt_fast.ops.record import DRIVER_FILE

BUILD_WITH_CUDA = "where nvcc is installed, `AAPT_CUDA=ON pip install .` in a checkout of aapt_fast builds it with CUDA"
SOURCE_TREE = "0+source"
"""The version of a package that was never installed."""

EXTRAS = {"video": "av", "serve": "fastapi", "text": "transformers", "plots": "matplotlib", "ray": "ray"}
"""Extras of the package, and the module that says whether an extra is installed."""


def faults(device: torch.device) -> list[str]:
    """Find what is installed wrongly here, for the best device of the machine; one sentence each, with the remedy."""
    found = [module_fault(), several_builds(installations()), torch_without_cuda(DRIVER_FILE.exists())]
    if found[0] is None:
        module = extension_or_none()
        assert module is not None
        found += [other_version(module), gpu_fault(module, device)]
    return [sentence for sentence in found if sentence is not None]


def module_fault() -> str | None:
    """Say why the compiled module is missing or does not load, or None where it does."""
    try:
        return absence() if extension_or_none() is None else None
    except RuntimeError as error:
        return str(error)


def installations() -> list[str]:
    """Find the folders on the path of this Python in which pip has installed aapt_fast."""
    return list(dict.fromkeys(str(found.locate_file("")) for found in distributions(name="aapt_fast")))


def several_builds(folders: Sequence[str]) -> str | None:
    """Say what to do about several installations, or None for one."""
    if len(folders) < 2:
        return None
    return (
        f"{len(folders)} builds of aapt_fast are installed, in {' and '.join(folders)}, and their files may mix: "
        "`pip uninstall --yes aapt_fast` once for each, then install one"
    )


def other_version(module: ModuleType) -> str | None:
    """Say so where the compiled module is of another version than the package, else None."""
    compiled, package = module.__version__, aapt_fast.__version__
    if package in (compiled, SOURCE_TREE):
        return None
    return (
        f"the compiled module is of version {compiled} and the package of {package}: `pip install --force-reinstall "
        "--no-deps` with one wheel, or with `.` in a checkout of aapt_fast, brings both of one version"
    )


def torch_without_cuda(driver: bool) -> str | None:
    """Say so where torch was built without CUDA though the machine has a GPU's `driver`, else None."""
    if not driver or torch.version.cuda is not None:
        return None
    return (
        f"this machine has an NVIDIA driver, but torch {torch.__version__} was built without CUDA: "
        "`pip install --force-reinstall torch` brings one with CUDA"
    )


def gpu_fault(module: ModuleType, device: torch.device) -> str | None:
    """Say what keeps every kernel from running on a GPU and can be repaired, or None; None on a CPU."""
    if device.type != "cuda":
        return None
    why = no_kernel_runs(device, selection())
    if why == GPU_WITHOUT_CUDA:
        return f"{why}: {BUILD_WITH_CUDA}"
    if driver_obstacle(module, device) is not None:
        return f"{driver_obstacle(module, device)}: install a newer driver, or build with an older CUDA"
    return None


def record_in_words(device: torch.device) -> str | None:
    """One sentence about the record of a GPU's kernels, or why none can run and what helps; None on a CPU."""
    if device.type != "cuda":
        return None
    found = record_for(device, selection())
    if found is not None:
        return found.in_words()
    why = no_kernel_runs(device, selection())
    if why is not None:
        return f"none can run: {why}" + (f"; {BUILD_WITH_CUDA}" if why == GPU_WITHOUT_CUDA else "")
    oldest = min(kernel.architecture.removeprefix("sm_") for kernel in KERNELS.values())
    here = ".".join(map(str, torch.cuda.get_device_capability(device)))
    return (
        f"none can run: they need a GPU of compute capability {oldest[:-1]}.{oldest[-1]} or newer, and this one has "
        f"{here}; torch's own code runs, and nothing has to be installed"
    )


def commit_of(module: ModuleType) -> str:
    """Read the commit that a compiled module was built from; "unknown" for a build outside of a git checkout."""
    file = Path(str(module.__file__)).with_name("commit.txt")
    return (file.read_text().strip() if file.is_file() else "") or "unknown"


def extras() -> dict[str, Any]:
    """Say for each extra of the package whether it is installed."""
    return {extra: importlib.util.find_spec(module) is not None for extra, module in EXTRAS.items()}


def nccl_version() -> str:
    """Versions of the NCCL with which several GPUs exchange: the loaded library's, and the one torch was built with.

    "none" where torch was built without it. One number where both are the same, or NCCL is part of torch's own library.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_nccl_available()):
        return "none"
    built = ".".join(map(str, torch.cuda.nccl.version()))
    loaded = loaded_nccl_version()
    return built if loaded in (None, built) else f"{loaded} (torch was built with {built})"


def loaded_nccl_version() -> str | None:
    """Ask the NCCL library that torch has loaded for its version; None where there is no such library."""
    try:
        library = ctypes.CDLL("libnccl.so.2", mode=os.RTLD_LAZY | os.RTLD_NOLOAD)
    except OSError:
        return None
    number = ctypes.c_int()
    if library.ncclGetVersion(ctypes.byref(number)) != 0:
        return None
    return f"{number.value // 10_000}.{number.value // 100 % 100}.{number.value % 100}"
