# SPDX-License-Identifier: Apache-2.0
"""`aapt-fast bench compare`: two documents, result by result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aapt_fast.cli import main
from aapt_fast.profiling import compare as comparing
from aapt_fast.profiling import document
from aapt_fast.profiling.compare import compare, read_results


def made(*results: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"schema": 1, "gpu": None, "torch": "2.13.0", "results": list(results), **fields}


def timed(name: str, p50: float, noise: float = 0.01, **more: Any) -> dict[str, Any]:
    return {"name": name, "p50_ms": p50, "noise": noise, "cold_l2": None, **more}


def test_the_schema_is_that_of_the_documents() -> None:
    assert comparing.SCHEMA == document.SCHEMA


def test_rows_say_which_is_faster_and_what_is_noise() -> None:
    first = made(timed("a", 10.0), timed("b", 10.0), timed("c", 10.0, noise=0.2), timed("old", 1.0), torch="2.9.0")
    second = made(timed("c", 11.5), timed("b", 12.0), timed("a", 8.0), timed("new", 1.0))
    found = compare(first, second)
    assert [(row.name, row.verdict) for row in found.rows] == [("a", "faster"), ("b", "slower"), ("c", "within noise")]
    assert found.rows[0].times_as_fast == 1.25 and found.rows[2].noise == 0.2
    assert (found.only_first, found.only_second) == (("old",), ("new",))
    assert found.circumstances == {"torch": ("2.9.0", "2.13.0")}
    words = "\n".join(found.in_words())
    assert words.startswith("torch: 2.9.0 | 2.13.0\n") and words.endswith(
        "only in the first: old\nonly in the second: new"
    )


def test_systems_of_one_name_are_compared_with_themselves() -> None:
    ours, torchs = {"what_ran": "ours", "cold_l2": True}, {"what_ran": "torch", "cold_l2": True}
    first = made(timed("k", 1.0, **ours), timed("k", 3.0, **torchs))
    second = made(timed("k", 3.0, **torchs), timed("k", 2.0, **ours))
    rows = {row.name: (row.first_ms, row.second_ms) for row in compare(first, second).rows}
    assert rows == {"k ours cold": (1.0, 2.0), "k torch cold": (3.0, 3.0)}


def test_documents_without_a_common_result_are_refused() -> None:
    with pytest.raises(ValueError, match="documents: expected a result that both have, got a and b"):
        compare(made(timed("a", 1.0)), made(timed("b", 1.0)))


def test_the_command_compares_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file, p50 in zip(files, (10.0, 5.0), strict=True):
        file.write_text(json.dumps(made(timed("frame", p50))))
    assert main(["bench", "compare", *map(str, files)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["frame", "10.000", "5.000", "2.000", "1.0%", "faster"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{", "expected a document of measurements, got JSONDecodeError"),
        ("[]", "expected a document of schema 1 .bench/README.md., got schema None"),
        ('{"schema": 2}', "got schema 2"),
        ('{"schema": 1, "rehearsal": true, "results": []}', "expected measurements, got a rehearsal"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, error: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=error):
        read_results(tmp_path / "x.json")


def test_a_file_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "compare", "nothing.json", "nothing.json"]) == 2
    assert "expected a file, got nothing.json, which does not exist" in capsys.readouterr().err
