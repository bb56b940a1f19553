# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from bench.harness.processes import Counts, counted

CASES = (
    '<testcase name="test_a[1]"/><testcase name="test_a[2]"><failure/></testcase><testcase name="test_d"/>'
    '<testcase name="test_b"><skipped/></testcase><testcase name="test_c"><error/></testcase>'
)


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        (f"<testsuites><testsuite>{CASES}</testsuite></testsuites>", Counts(passed=2, failed=2, skipped=1)),
        (f"<testsuite>{CASES}</testsuite>", Counts(passed=2, failed=2, skipped=1)),
        ("<testsuites><testsuite>", Counts(0, 1, 0)),
        (None, Counts(0, 1, 0)),
    ],
    ids=["several suites", "one suite", "cut off", "missing"],
)
def test_counts_of_a_junit_file(tmp_path, text, counts):
    path = tmp_path / "junit.xml"
    if text is not None:
        path.write_text(text)
    assert counted(path) == counts


def test_only_skipped_tests_are_not_good():
    assert not Counts(passed=0, failed=0, skipped=5).good
    assert not Counts(passed=5, failed=1, skipped=0).good
    assert Counts(passed=5, failed=0, skipped=1).good
    assert Counts(0, 0, 5).only_skipped
    assert not Counts(1, 0, 5).only_skipped and not Counts(0, 1, 5).only_skipped and not Counts(0, 0, 0).only_skipped
