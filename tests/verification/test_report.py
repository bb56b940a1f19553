# SPDX-License-Identifier: Apache-2.0
"""The report of a run: a table, then words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.verification.trials import GPU

from aapt_fast.ops.record import Record
from aapt_fast.verification.one_kernel import Finding, Timing
from aapt_fast.verification.report import Report

SM90, SPLIT, PORTABLE = (f"paged_attention/{variant}" for variant in ("sm90", "sm90_split", "portable"))


def timed(kernel: str, milliseconds: float, in_torch: float) -> Finding:
    """A right kernel with times at one shape."""
    times = {kernel: milliseconds, "eager": in_torch}
    return Finding(kernel, 2.0, 7, timings=(Timing("1x2/bf16", times, "eager", in_torch / milliseconds),))


FAST, SLOW, FASTER = timed(SM90, 1.0, 3.0), timed(PORTABLE, 2.0, 1.0), timed(SPLIT, 0.5, 2.0)
REFUSED = Finding("kv_write/portable", 2.0, 7, untimed={"1x3/bf16": "the kernel does not take it: width"})
WRONG = Finding("clean_frame/portable", 2.0, 3, fault="output 0: expected 1, got 2", details="Traceback ...")


def report(*findings: Finding) -> Report:
    known = Record(GPU, {each.kernel: each.verified() for each in findings}, "2.13", "2026-11-30T12:00:00+00:00")
    cannot_run = {"channel_concat/portable": "compiled for sm_90a, this GPU has 8.0"}
    return Report(findings, known, Path("/cache/record.json"), cannot_run)


def test_the_words_say_what_is_on_and_what_is_off_and_why() -> None:
    assert report(FAST, SLOW, FASTER, REFUSED, WRONG).in_words().splitlines() == [
        "On for this Emulated GPU from now on: paged_attention/sm90_split, paged_attention/sm90.",
        "Off: channel_concat/portable: compiled for sm_90a, this GPU has 8.0.",
        "Off: clean_frame/portable: it failed on this GPU: output 0: expected 1, got 2.",
        "Off: gate_residual_norm/portable: `aapt-fast verify` has not tried it on this GPU.",
        "Off: kv_write/portable: it is right on this GPU, but could be timed at none of the shapes.",
        "Off: norm_silu/portable: `aapt-fast verify` has not tried it on this GPU.",
        "Off: paged_attention/portable: it is right on this GPU, but takes 2.00 times as long as torch's best.",
        "Off: philox_normal/portable: `aapt-fast verify` has not tried it on this GPU.",
        "Off: ring_conv3d/portable: `aapt-fast verify` has not tried it on this GPU.",
        "Recorded in /cache/record.json.",
    ]
    assert report(SLOW).in_words().startswith("On for this Emulated GPU from now on: no kernel.\n")


def test_the_table_has_a_line_per_kernel_and_shape() -> None:
    head, *rows = report(FAST, REFUSED, WRONG).table().splitlines()
    assert head.split("  ")[0] == "kernel" and head.endswith("torch's best")
    checks = ["right", "in", "7", "checks"]
    assert [row.split() for row in rows] == [
        [SM90, *checks, "1x2/bf16", "1.0000", "3.0000", "3.00", "eager"],
        ["kv_write/portable", *checks, "1x3/bf16", "-", "-", "-", *REFUSED.untimed["1x3/bf16"].split()],
        ["clean_frame/portable", "WRONG", "-", "-", "-", "-", "-"],
    ]


@pytest.mark.parametrize(("findings", "passed"), [((FAST, SLOW, REFUSED), True), ((FAST, WRONG), False)])
def test_slow_is_not_wrong(findings: tuple[Finding, ...], passed: bool) -> None:
    assert report(*findings).passed is passed


def test_the_file_has_what_a_maintainer_needs() -> None:
    content = json.loads(json.dumps(report(FAST, WRONG).as_dict()))
    assert content["record"]["identity"]["gpu"] == "Emulated GPU" and content["on"] == ["paged_attention/sm90"]
    fast, wrong = content["kernels"]
    assert fast["timings"][0]["milliseconds"] == {"paged_attention/sm90": 1.0, "eager": 3.0}
    assert wrong["details"] == "Traceback ..." and content["off"]["clean_frame/portable"].startswith("it failed")
