# SPDX-License-Identifier: Apache-2.0
"""A driver or a GPU that does not fit the compiled module is found out before the first launch."""

from __future__ import annotations

import types
import warnings

import pytest
import torch

from aapt_fast.ops import kernels
from aapt_fast.ops.driver import code_obstacle, driver_cuda, driver_obstacle, runtime_cuda
from aapt_fast.ops.kernels import KERNELS, Selection, no_kernel_runs, obstacle, running_kernel, use_kernels

GPU = torch.device("cuda")
KERNEL = "philox_normal/portable"
TOO_OLD = (
    "the driver of this GPU is for CUDA up to 12.4, and the compiled module, built with CUDA 13.0, "
    "needs one for CUDA 13.0 or newer"
)


DEFAULT = "80-real,90-real,120-real,80-virtual,90a-real"


def built_with(version: str, architectures: str = DEFAULT) -> types.ModuleType:
    module = types.ModuleType("built")
    info = {"cuda": bool(version), "emulated": False, "cuda_version": version, "cuda_archs": architectures}
    module.build_info = lambda: info
    for kernel in KERNELS.values():
        setattr(module, kernel.function, lambda *arguments: None)
    return module


@pytest.fixture
def driver(monkeypatch):
    """A GPU, by default Hopper, whose driver knows CUDA up to a version, as the number that torch gives."""

    def pretend(number: int, capability: tuple[int, int] = (9, 0)) -> None:
        monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: number, raising=False)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    kernels._warn_once.cache_clear()
    return pretend


@pytest.mark.parametrize(
    ("number", "version", "fits"),
    [
        (13000, "13.0.48", True),
        (13000, "12.8.61", True),
        (12080, "12.4.131", True),
        (12040, "12.9.41", True),
        (12040, "13.0.48", False),
        (11080, "12.0.1", False),
    ],
)
def test_a_driver_runs_code_of_its_major_version_and_of_older_ones(driver, number, version, fits):
    driver(number)
    assert driver_cuda() == (number // 1000, number % 1000 // 10)
    assert (driver_obstacle(built_with(version), GPU) is None) == fits


def test_a_module_without_cuda_asks_no_driver():
    module = built_with("", "")
    assert runtime_cuda(module) is None
    assert driver_obstacle(module, GPU) is None and code_obstacle(module, GPU) is None


@pytest.mark.parametrize("names", ["auto", "all"])
def test_torch_code_runs_instead_with_one_warning(names, driver):
    driver(12040)
    with use_kernels(names, extension=built_with("13.0.48")), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert {running_kernel(kernel.op, GPU) for kernel in KERNELS.values()} == {None}
    assert [str(warning.message) for warning in caught] == [f"aapt_fast: {TOO_OLD}: torch's own code runs"]


def test_a_kernel_that_is_named_raises(driver):
    driver(12040)
    with (
        use_kernels(KERNEL, extension=built_with("13.0.48")),
        pytest.raises(RuntimeError, match=f"got none: {TOO_OLD}"),
    ):
        running_kernel("philox_normal", GPU)


def test_kernels_that_are_switched_off_give_no_warning(driver):
    driver(12040)
    with use_kernels("none", extension=built_with("13.0.48")), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert running_kernel("philox_normal", GPU) is None


def test_the_reason_is_the_same_for_every_kernel_and_a_new_driver_has_none(driver):
    driver(12040)
    chosen = Selection(("all",), built_with("13.0.48"))
    assert no_kernel_runs(GPU, chosen) == obstacle(KERNELS[KERNEL], GPU, chosen) == TOO_OLD
    driver(13010)
    assert no_kernel_runs(GPU, chosen) is None and obstacle(KERNELS[KERNEL], GPU, chosen) is None


# ---- GPUs with and without machine code in the module ----


@pytest.mark.parametrize(
    ("capability", "has_machine_code"),
    [
        ((8, 0), True),
        ((8, 9), True),
        ((9, 0), True),
        ((10, 0), False),
        ((10, 3), False),
        ((11, 0), False),
        ((12, 0), True),
        ((12, 1), True),
        ((13, 0), False),
    ],
)
def test_ptx_needs_a_driver_for_the_whole_version(driver, capability, has_machine_code):
    module = built_with("12.9.41")
    driver(12080, capability)
    assert (driver_obstacle(module, GPU) is None) == has_machine_code
    assert driver_obstacle(built_with("12.9.41", "80-virtual"), GPU) is not None
    driver(12090, capability)
    assert driver_obstacle(module, GPU) is None and code_obstacle(module, GPU) is None


@pytest.mark.parametrize("names", ["auto", "all"])
def test_a_driver_too_old_for_the_ptx_gives_one_warning(names, driver):
    driver(12080, (10, 0))
    expected = (
        "aapt_fast: this GPU, of compute capability 10.0, needs PTX, which its driver, for CUDA up to 12.8, cannot "
        "compile: that of the compiled module takes one for CUDA 12.9 or newer: torch's own code runs"
    )
    with use_kernels(names, extension=built_with("12.9.41")), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert {running_kernel(kernel.op, GPU) for kernel in KERNELS.values()} == {None}
    assert [str(warning.message) for warning in caught] == [expected]


@pytest.mark.parametrize(
    ("architectures", "capability", "has_code"),
    [
        ("90-real,90a-real", (8, 0), False),
        ("90-real,90a-real", (9, 0), True),
        ("90-real,90a-real", (10, 0), False),
        ("90-virtual", (8, 9), False),
        ("90-virtual", (12, 1), True),
        ("86-real", (8, 0), False),
        ("86-real", (8, 9), True),
        ("120-real,120-virtual", (10, 3), False),
        (DEFAULT, (7, 5), False),
        (DEFAULT, (10, 0), True),
    ],
)
def test_a_build_for_other_gpus_says_so(driver, architectures, capability, has_code):
    module = built_with("13.0.48", architectures)
    driver(13000, capability)
    version = ".".join(map(str, capability))
    reason = f"the compiled module has code for {architectures}, none for this GPU of compute capability {version}"
    expected = None if has_code else reason
    assert code_obstacle(module, GPU) == expected
    named = Selection((KERNEL,), module)
    assert obstacle(KERNELS[KERNEL], GPU, named) == no_kernel_runs(GPU, named) == expected
