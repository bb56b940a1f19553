# SPDX-License-Identifier: Apache-2.0
"""The examination of one kernel, in this process and in the emulation."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
from tests.verification.trials import TimesAsTold

from aapt_fast.ops.kernels import KERNELS
from aapt_fast.verification.case import Setting
from aapt_fast.verification.cases import SUITES
from aapt_fast.verification.one_kernel import Finding, Job, Timing, examine

CLEAN = "clean_frame/portable"


def job(kernel: str, module, *shapes) -> Job:
    return Job(kernel, "cpu", shapes or (SUITES[KERNELS[kernel].op].tiny,), str(module), compiled=False)


def quietly(line: str) -> None:
    """Takes lines of progress."""


@pytest.mark.parametrize("kernel", ["clean_frame/portable", "gate_residual_norm/portable", "philox_normal/portable"])
def test_a_right_kernel_passes_in_every_dtype_and_is_timed(kernel, module_file):
    lines = []
    finding = examine(job(kernel, module_file), lines.append, TimesAsTold(0.25))
    assert finding.fault is None and finding.checks == len(lines) - 1 and finding.untimed == {}
    assert all(any(str(dtype) in line for line in lines) for dtype in KERNELS[kernel].dtypes)
    (timing,) = finding.timings
    assert timing.times_as_fast == 4.0 and timing.milliseconds[kernel] == 0.25 and "torch" in timing.best
    assert Finding.from_json(json.loads(json.dumps(asdict(finding)))) == finding


def test_a_kernel_that_is_slow_by_the_clock_is_right_but_stays_off(module_file):
    verified = examine(job(CLEAN, module_file), quietly, TimesAsTold(2.0)).verified()
    assert verified.fault is None and verified.speed == 0.5
    assert verified.obstacle() == "it is right on this GPU, but takes 2.00 times as long as torch's best"


def test_a_wrong_number_is_a_fault_that_names_the_case(planted):
    wrong = """
def clean_frame_portable(*arguments):
    real.clean_frame_portable(*arguments)
    clean = arguments[4]
    if clean[2][-1] == 26:
        ctypes.memset(clean[0] + 400, 0, 4)
"""
    finding = examine(job(CLEAN, planted(wrong)), quietly)
    assert finding.fault.startswith(
        "ValueError: clean_frame/portable, torch.bfloat16: 65 tokens: output 0: expected an"
    )
    assert finding.checks == 3 and finding.timings == () and "require_right" in finding.details


def test_results_that_are_not_written_are_a_fault(planted):
    finding = examine(job(CLEAN, planted("def clean_frame_portable(*arguments): pass")), quietly)
    assert "output 0: expected an error of at most" in finding.fault and finding.fault.endswith("got nan")
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_kernel_that_is_wrong_only_at_the_timed_shape_is_wrong(planted):
    wrong = """
def clean_frame_portable(*arguments):
    real.clean_frame_portable(*arguments)
    clean = arguments[4]
    if clean[2][-1] == 10:
        ctypes.memset(clean[0], 0, 400)
"""
    finding = examine(job(CLEAN, planted(wrong)), quietly)
    assert finding.checks == 8 and "expected a relative difference (L2) of at most 2e-02" in finding.fault


def test_an_error_of_the_kernel_is_a_fault_with_its_traceback(planted):
    broken = "def clean_frame_portable(*arguments): raise RuntimeError('an illegal memory access')"
    finding = examine(job(CLEAN, planted(broken)), quietly)
    assert finding.fault == "RuntimeError: an illegal memory access" and finding.details.startswith("Traceback")


def test_torch_code_does_not_pass_for_the_kernel(planted):
    finding = examine(job(CLEAN, planted("del clean_frame_portable")), quietly)
    assert finding.fault == f"ValueError: clean_frame: expected a run of {CLEAN}, got torch composition"


def test_a_shape_that_the_kernel_does_not_take_has_no_time(planted):
    picky = """
def clean_frame_portable(*arguments):
    if arguments[4][2][-1] == 10:
        raise real.Unsupported("noised: expected another width")
    real.clean_frame_portable(*arguments)
"""
    finding = examine(job(CLEAN, planted(picky), (8, 6, 10), (8, 6, 12)), quietly, TimesAsTold(0.5))
    assert finding.fault is None and finding.checks == 8
    assert finding.untimed == {"8x6x10/bf16": "the kernel does not take it: noised: expected another width"}
    assert [timing.case for timing in finding.timings] == ["8x6x12/bf16"]


def test_other_libraries_and_inputs_that_lie_otherwise_do_not_decide():
    suite = SUITES["paged_attention"]
    case = suite.build(suite.tiny, Setting(torch.device("cpu"), compiled=False))
    assert "SDPA on a CPU, contiguous" in case.elsewhere and "FlashAttention 3, contiguous" in case.elsewhere
    assert set(case.systems) - case.elsewhere >= {
        "SDPA on a CPU, gathered from pages",
        "torch composition of paged_attention, eager",
    }


def test_a_finding_becomes_a_part_of_the_record():
    timing = Timing("1x2/bf16", {"ours": 1.0, "torch": 3.0}, "torch", 3.0)
    assert Finding("a/b", 1.0, timings=(timing,)).verified().times_as_fast == {"1x2/bf16": 3.0}
    assert Finding("a/b", 1.0, fault="wrong").verified().obstacle() == "it failed on this GPU: wrong"
