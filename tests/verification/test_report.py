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

FAST = Finding("a/fast", 2.0, 7, timings=(Timing("1x2/bf16", {"a/fast": 1.0, "eager": 3.0}, "eager", 3.0),))
SLOW = Finding("a/slow", 2.0, 7, timings=(Timing("1x2/bf16", {"a/slow": 2.0, "eager": 1.0}, "eager", 0.5),))
FASTER = Finding("a/faster", 2.0, 7, timings=(Timing("1x2/bf16", {"a/faster": 0.5, "eager": 2.0}, "eager", 4.0),))
REFUSED = Finding("b/picky", 2.0, 7, untimed={"1x3/bf16": "the kernel does not take it: width"})
WRONG = Finding("c/wrong", 2.0, 3, fault="output 0: expected 1, got 2", details="Traceback ...")


def report(*findings: Finding) -> Report:
    known = Record(GPU, {each.kernel: each.verified() for each in findings}, "2.13", "2026-11-30T12:00:00+00:00")
    return Report(findings, known, Path("/cache/record.json"), {"d/new": "compiled for sm_90a, this GPU has 8.0"})


def test_the_words_say_what_is_on_and_what_is_off_and_why() -> None:
    assert report(FAST, SLOW, FASTER, REFUSED, WRONG).in_words().splitlines() == [
        "On for this Emulated GPU from now on: a/faster, a/fast.",
        "Off: a/slow: it is right on this GPU, but takes 2.00 times as long as torch's best.",
        "Off: b/picky: it is right on this GPU, but could be timed at none of the shapes.",
        "Off: c/wrong: it failed on this GPU: output 0: expected 1, got 2.",
        "Off: d/new: compiled for sm_90a, this GPU has 8.0.",
        "Recorded in /cache/record.json.",
    ]
    assert report(SLOW).in_words().startswith("On for this Emulated GPU from now on: no kernel.\n")


def test_the_table_has_a_line_per_kernel_and_shape() -> None:
    head, *rows = report(FAST, REFUSED, WRONG).table().splitlines()
    assert head.split("  ")[0] == "kernel" and head.endswith("torch's best")
    assert [row.split() for row in rows] == [
        ["a/fast", "right", "in", "7", "checks", "1x2/bf16", "1.0000", "3.0000", "3.00", "eager"],
        ["b/picky", "right", "in", "7", "checks", "1x3/bf16", "-", "-", "-", *REFUSED.untimed["1x3/bf16"].split()],
        ["c/wrong", "WRONG", "-", "-", "-", "-", "-"],
    ]


@pytest.mark.parametrize(("findings", "passed"), [((FAST, SLOW, REFUSED), True), ((FAST, WRONG), False)])
def test_slow_is_not_wrong(findings: tuple[Finding, ...], passed: bool) -> None:
    assert report(*findings).passed is passed


def test_the_file_has_what_a_maintainer_needs() -> None:
    content = json.loads(json.dumps(report(FAST, WRONG).as_dict()))
    assert content["record"]["identity"]["gpu"] == "Emulated GPU" and content["on"] == ["a/fast"]
    fast, wrong = content["kernels"]
    assert fast["timings"][0]["milliseconds"] == {"a/fast": 1.0, "eager": 3.0}
    assert wrong["details"] == "Traceback ..." and content["off"]["c/wrong"].startswith("it failed")
