# SPDX-License-Identifier: Apache-2.0
"""Every suite on the CPU, with its tiny shape: the systems run and agree, and wrong ones are found."""

from __future__ import annotations

import types
from pathlib import Path

import pytest
import torch

from aapt_fast.ops.kernels import KERNELS
from aapt_fast.testing import targets
from aapt_fast.verification.case import Case, Setting, check
from aapt_fast.verification.cases import SUITES, pages

CPU = torch.device("cpu")
OPS = pytest.mark.parametrize("op", SUITES)


@pytest.fixture(scope="module")
def emulated(request):
    return targets.emulated(Path(request.config.getoption("--emulated-build"))).module


def built(op: str, **options) -> Case:
    suite = SUITES[op]
    return suite.build(suite.tiny, Setting(CPU, suite.dtype, compiled=False, **options))


def test_every_kernel_has_a_suite():
    assert {kernel.op for kernel in KERNELS.values()} == set(SUITES)


@OPS
def test_all_systems_of_a_suite_run_and_agree(op, emulated):
    case = built(op, extension=emulated)
    running, failures = check(case)
    assert set(running) == set(case.systems) and set(failures) == set(case.unavailable)
    expected = [k for k in KERNELS if k.split("/")[0] == op and hasattr(emulated, k.replace("/", "_"))]
    assert case.ours == expected


@OPS
def test_without_a_module_the_kernels_are_missing_in_words(op):
    nothing = types.ModuleType("nothing")
    nothing.build_info = lambda: {"emulated": False, "cuda": False}
    case = built(op, extension=nothing)
    running, failures = check(case)
    assert case.ours == [] and set(running) == set(case.systems)
    assert {kernel for kernel in KERNELS if kernel.split("/")[0] == op} <= set(failures)


def test_no_system_lives_on_what_another_one_wrote(emulated):
    case = built("kv_write", extension=emulated)
    written = [call()[1].data_ptr() for call in case.systems.values()]
    assert len(set(written)) == len(written) >= 3


def test_a_wrong_system_is_found():
    ones = torch.ones(4)
    case = Case("x", (4,), torch.float32, 1.0, 1.0, ours=["off", "nan", "raises"])
    case.systems = {
        "right": lambda: ones,
        "off": lambda: ones * 1.01,
        "nan": lambda: ones * torch.nan,
        "raises": lambda: ones.view(5),
        "other": lambda: ones * 7,
        "also right": lambda: (ones * 1.0,),
    }
    case.other_numbers = {"other"}
    running, failures = check(case)
    assert set(running) == {"right", "other", "also right"} and set(failures) == {"off", "nan", "raises"}
    assert "expected a relative difference (L2) of at most 1e-04, got 1.00e-02" in str(failures["off"])
    assert isinstance(failures["raises"], RuntimeError)


def test_the_oracle_itself_may_not_be_nan():
    case = Case("x", (4,), torch.float32, 1.0, 1.0)
    case.systems = {"nan": lambda: torch.full((4,), torch.nan), "right": lambda: torch.ones(4)}
    assert set(check(case)[0]) == {"right"}


@pytest.mark.parametrize(("keys", "tokens"), [(130, 65), (64, 64), (100, 65), (1, 5)])
def test_pages_hold_frames_as_the_cache_does(keys, tokens):
    k, v = torch.randn(2, keys, 2, 4).unbind()
    k_pages, v_pages, ids, valid = pages(k, v, tokens)
    for flat, paged in ((k, k_pages), (v, v_pages)):
        parts = [paged[page, :count] for page, count in zip(ids[0].tolist(), valid[0].tolist(), strict=True)]
        assert torch.equal(torch.cat(parts), flat)
    starts = torch.cat([torch.zeros(1), valid[0].cumsum(0)[:-1]]).tolist()
    assert {start for start in range(0, keys, tokens)} <= set(starts)  # every frame starts on a page
