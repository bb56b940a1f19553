# SPDX-License-Identifier: Apache-2.0
"""The suites of bench/kernels as programs, on the CPU with tiny shapes: their times mean nothing here."""

from __future__ import annotations

import types
from pathlib import Path

import pytest
import torch
from bench.harness.cases import Case, Setting, check, results, run
from bench.harness.ceilings import Ceilings
from bench.harness.document import Document, problems
from bench.harness.timing import WallClock
from bench.kernels.__main__ import OPS, builders
from bench.kernels.bench_paged_attention import pages

from aapt_fast.ops.kernels import KERNELS
from aapt_fast.profiling.timing import Sample
from aapt_fast.testing import targets

CPU = torch.device("cpu")
CEILINGS = Ceilings(1.0, 1.0)


@pytest.fixture
def document(tmp_path):
    return Document.create(tmp_path / "results.json", "pytest")


@pytest.fixture(scope="module")
def emulated(request):
    return targets.emulated(Path(request.config.getoption("--emulated-build"))).module


def built(op: str, **options) -> Case:
    tiny, build = next((tiny, build) for name, _, tiny, build in builders() if name == op)
    dtype = torch.float32 if op == "philox_normal" else torch.bfloat16
    return build(tiny[0], Setting(CPU, dtype, compiled=False, **options))


def test_every_kernel_has_a_suite():
    assert {kernel.split("/")[0] for kernel in KERNELS} <= set(OPS)


@pytest.mark.parametrize("op", OPS)
def test_all_systems_of_a_suite_run_agree_and_are_timed(op, emulated, document):
    case = built(op, extension=emulated)
    run(case, WallClock(), CEILINGS, document, modes=("warm",), repetitions=5, limit_s=0.0)
    assert problems(document.content) == []
    assert {entry["what_ran"] for entry in document.content["results"]} == set(case.systems)
    assert {entry["what_ran"] for entry in document.content["failures"]} == set(case.unavailable)
    expected = [k for k in KERNELS if k.split("/")[0] == op and hasattr(emulated, k.replace("/", "_"))]
    assert case.ours == expected


@pytest.mark.parametrize("op", OPS)
def test_without_a_module_the_kernels_are_missing_in_words(op, document):
    nothing = types.ModuleType("nothing")
    nothing.build_info = lambda: {"emulated": False, "cuda": False}
    case = built(op, extension=nothing)
    assert case.ours == []
    assert {kernel for kernel in KERNELS if kernel.split("/")[0] == op} <= set(case.unavailable)
    assert set(check(case, document)) == set(case.systems)


def test_a_wrong_kernel_is_not_timed(document):
    ones = torch.ones(4)
    case = Case("kernel/x/4/fp32", "x", 1.0, 1.0, torch.float32, ours=["off", "nan", "raises"])
    case.systems = {
        "right": lambda: ones,
        "off": lambda: ones * 1.01,
        "nan": lambda: ones * torch.nan,
        "raises": lambda: ones.view(5),
        "other": lambda: ones * 7,
        "also right": lambda: (ones * 1.0,),
    }
    case.other_numbers = {"other"}
    assert set(check(case, document)) == {"right", "other", "also right"}
    reasons = {entry["what_ran"]: entry["reason"] for entry in document.content["failures"]}
    assert set(reasons) == {"off", "nan", "raises"}
    assert "differs by 1.00e-02" in reasons["off"] and "RuntimeError" in reasons["raises"]


def test_the_oracle_itself_may_not_be_nan(document):
    case = Case("kernel/x/4/fp32", "x", 1.0, 1.0, torch.float32)
    case.systems = {"nan": lambda: torch.full((4,), torch.nan), "right": lambda: torch.ones(4)}
    assert set(check(case, document)) == {"right"}


def test_the_baseline_is_the_fastest_system_that_does_the_same_and_is_not_ours():
    case = Case("kernel/x/4/fp32", "x", flops=2e9, moved_bytes=1e9, dtype=torch.float32, ours=["ours"])
    case.other_numbers = {"cheat"}
    times = {"slow": 8.0, "fast": 4.0, "cheat": 0.1, "ours": 2.0}
    samples = {name: Sample((time, time), True, "t") for name, time in times.items()}
    found = {entry["what_ran"]: entry for entry in results(case, samples, CEILINGS, "stream")}
    assert {entry["baseline"] for entry in found.values()} == {"fast"}
    assert found["ours"]["ratio"] == 2.0 and found["slow"]["ratio"] == 0.5
    assert found["ours"]["tflops"] == pytest.approx(1.0) and found["ours"]["tb_s"] == pytest.approx(0.5)
    assert found["ours"]["share_of_ceiling"] == pytest.approx(1.0)  # 2 GFLOP at 1 TFLOP/s take 2 ms
    assert [name for name, entry in found.items() if entry["ours"]] == ["ours"]


@pytest.mark.parametrize(("keys", "tokens"), [(130, 65), (64, 64), (100, 65), (1, 5)])
def test_pages_hold_frames_as_the_cache_does(keys, tokens):
    k, v = torch.randn(2, keys, 2, 4).unbind()
    k_pages, v_pages, ids, valid = pages(k, v, tokens)
    for flat, paged in ((k, k_pages), (v, v_pages)):
        parts = [paged[page, :count] for page, count in zip(ids[0].tolist(), valid[0].tolist(), strict=True)]
        assert torch.equal(torch.cat(parts), flat)
    starts = torch.cat([torch.zeros(1), valid[0].cumsum(0)[:-1]]).tolist()
    assert {start for start in range(0, keys, tokens)} <= set(starts)  # every frame starts on a page
