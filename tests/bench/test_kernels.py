# SPDX-License-Identifier: Apache-2.0
"""bench_kernels on the CPU: its times mean nothing here."""

from __future__ import annotations

import pytest
import torch
from bench.bench_kernels import Timing, results, run
from bench.harness.ceilings import Ceilings

from aapt_fast.profiling.document import Document
from aapt_fast.profiling.interleaved import WallClock
from aapt_fast.profiling.schema import problems
from aapt_fast.profiling.timing import Sample
from aapt_fast.verification.case import Case, Setting
from aapt_fast.verification.cases import SUITES

CEILINGS = Ceilings(1.0, 1.0)
TIMING = Timing(WallClock(), modes=("warm",), limit_s=0.0, repetitions=5)


@pytest.mark.parametrize("op", SUITES)
def test_a_suite_is_timed(op):
    suite, document = SUITES[op], Document.new("pytest")
    case = suite.build(suite.tiny, Setting(torch.device("cpu"), suite.dtype, compiled=False))
    assert run(case, document, CEILINGS, TIMING) == []
    assert problems(document.content) == []
    assert {entry["what_ran"] for entry in document.content["results"]} == set(case.systems)
    assert {entry["what_ran"] for entry in document.content["failures"]} == set(case.unavailable)


def test_a_wrong_kernel_is_returned_and_not_timed():
    document = Document.new("pytest")
    case = Case("x", (4,), torch.float32, 1.0, 1.0, ours=["wrong"])
    case.systems = {"right": lambda: torch.ones(4), "wrong": lambda: torch.zeros(4)}
    assert run(case, document, CEILINGS, TIMING) == ["wrong"]
    assert [entry["what_ran"] for entry in document.content["results"]] == ["right"]
    assert [entry["what_ran"] for entry in document.content["failures"]] == ["wrong"]


def test_without_ceilings_nothing_is_timed():
    document = Document.new("pytest")
    case = Case("x", (4,), torch.float32, 1.0, 1.0, {"right": lambda: torch.ones(4)})
    assert run(case, document, None, TIMING) == [] and document.content["results"] == []


def test_the_baseline_is_the_fastest_system_that_does_the_same_and_is_not_ours():
    case = Case("x", (4, 5), torch.float32, flops=2e9, moved_bytes=1e9, ours=["ours"])
    case.other_numbers = {"cheat"}
    times = {"slow": 8.0, "fast": 4.0, "cheat": 0.1, "ours": 2.0}
    samples = {name: Sample((time, time), True, "t") for name, time in times.items()}
    found = {entry["what_ran"]: entry for entry in results(case, samples, CEILINGS, "stream")}
    assert {(entry["name"], entry["baseline"]) for entry in found.values()} == {("kernel/x/4x5/fp32", "fast")}
    assert found["ours"]["ratio"] == 2.0 and found["slow"]["ratio"] == 0.5
    assert found["ours"]["tflops"] == pytest.approx(1.0) and found["ours"]["tb_s"] == pytest.approx(0.5)
    assert found["ours"]["share_of_ceiling"] == pytest.approx(1.0)  # 2 GFLOP at 1 TFLOP/s take 2 ms
    assert [name for name, entry in found.items() if entry["ours"]] == ["ours"]
