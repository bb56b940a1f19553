# SPDX-License-Identifier: Apache-2.0
"""A driver that is too old for the compiled module is found out before the first launch."""

from __future__ import annotations

import types
import warnings

import pytest
import torch

from aapt_fast.ops import kernels
from aapt_fast.ops.driver import driver_cuda, driver_obstacle, runtime_cuda
from aapt_fast.ops.kernels import KERNELS, Selection, no_kernel_runs, obstacle, running_kernel, use_kernels

GPU = torch.device("cuda")
KERNEL = "philox_normal/portable"
TOO_OLD = (
    "the driver of this GPU is for CUDA up to 12.4, and the compiled module, built with CUDA 13.0, "
    "needs one for CUDA 13.0 or newer"
)


def built_with(version: str) -> types.ModuleType:
    module = types.ModuleType("built")
    module.build_info = lambda: {"cuda": bool(version), "emulated": False, "cuda_version": version}
    for kernel in KERNELS.values():
        setattr(module, kernel.function, lambda *arguments: None)
    return module


@pytest.fixture
def driver(monkeypatch):
    """A Hopper GPU whose driver knows CUDA up to a version, as the number that torch gives."""

    def pretend(number: int) -> None:
        monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: number, raising=False)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))

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
    assert (driver_obstacle(built_with(version)) is None) == fits


def test_a_module_without_cuda_asks_no_driver():
    assert runtime_cuda(built_with("")) is None and driver_obstacle(built_with("")) is None


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
