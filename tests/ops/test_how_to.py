# SPDX-License-Identifier: Apache-2.0
"""docs/how-to/add-an-op.md is true."""

from __future__ import annotations

import re
from pathlib import Path

from aapt_fast.ops.registry import OPS

TEXT = (Path(__file__).parents[2] / "docs" / "how-to" / "add-an-op.md").read_text()


def test_the_number_of_files_is_the_number_of_rows():
    rows = [line.split("|")[1] for line in TEXT.splitlines() if line.startswith("| `")]
    files = [file for row in rows for file in re.findall(r"`([^`]+)`", row)]
    assert len(files) == len(set(files)) == 14 and "touches fourteen files" in TEXT


def test_files_of_the_python_side_exist_for_every_op():
    root = Path(__file__).parents[2]
    for op in OPS:
        for file in ("python/aapt_fast/ops/<op>.py", "tests/ops/test_<op>.py"):
            assert f"`{file}`" in TEXT and (root / file.replace("<op>", op)).is_file()


def test_the_last_example_runs(capsys):
    exec(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)[-1], {})
    assert "'philox_normal': " in capsys.readouterr().out
