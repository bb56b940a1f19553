# SPDX-License-Identifier: Apache-2.0
"""The tests of the kernels once more, on a GPU: each file in a process of its own, which ends with its time."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from bench.harness.processes import counted

from aapt_fast.verification.processes import run_limited

ROOT = Path(__file__).parents[2]
LIMIT_S = 200


def kernel_tests() -> list[Path]:
    """List the files of tests/kernels that run on a GPU, too: a test there takes the fixture `target` or `hopper`."""
    takes_target = re.compile(r"^def test_\w+\([^)]*\b(target|hopper)\b", re.MULTILINE)
    files = sorted((ROOT / "tests" / "kernels").glob("test_*.py"))
    return [file for file in files if takes_target.search(file.read_text())]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: the kernels were tested on the emulated machine")
@pytest.mark.parametrize("file", kernel_tests(), ids=lambda file: file.stem)
def test_on_a_gpu(file, tmp_path):
    junit = tmp_path / "junit.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={junit}"]
    outcome = run_limited([*command, str(file), "--target", "cuda"], LIMIT_S, cwd=ROOT)
    counts = counted(junit)
    if outcome.status == "passed" and counts.only_skipped:
        pytest.skip(f"none of its {counts.skipped} tests is for this GPU")
    assert outcome.status == "passed" and counts.good, f"{outcome.status}, {counts}:\n{outcome.output[-4000:]}"
