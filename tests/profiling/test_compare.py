# SPDX-License-Identifier: Apache-2.0
"""`aapt-fast bench compare`: two documents, entry by entry."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aapt_fast.cli import main
from aapt_fast.profiling.compare import COMPARISON, compare, spread
from aapt_fast.profiling.document import head, result
from aapt_fast.profiling.timing import Sample

RESULTS = Path(__file__).parents[2] / "bench" / "results"


def made(*results: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**head("pytest"), "results": list(results), **fields}


def timed(name: str, p50: float, noise: float = 0.01, what_ran: str = "ours", **more: Any) -> dict[str, Any]:
    entry = result(name, Sample((p50,) * 100, None, "wall clock"), what_ran)
    return {**entry, "noise": noise, **more}


def written(folder: Path, **documents: dict[str, Any]) -> list[str]:
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document))
    return [str(folder / f"{name}.json") for name in documents]


def test_a_difference_means_something_only_beyond_both_spreads():
    first = made(timed("a", 10.0), timed("b", 10.0), timed("c", 10.0, noise=0.1), timed("old", 1.0), torch="2.9.0")
    second = made(timed("c", 11.5, noise=0.1), timed("b", 12.0), timed("a", 8.0), timed("new", 1.0), torch="2.13.0")
    found = compare(first, second)
    assert [(row.name, row.verdict) for row in found.rows] == [
        ("a", "faster"),
        ("b", "slower"),
        ("c", "within the spread"),  # 1.5 is more than one of them, less than both: the root of 1.0 and 1.15 squared
    ]
    assert found.rows[0].ratio == 1.25 and (found.rows[2].first_spread, found.rows[2].second_spread) == (0.1, 0.1)
    assert (found.only_first, found.only_second) == (("old",), ("new",))
    assert found.circumstances == {"torch": ("2.9.0", "2.13.0")}
    words = found.in_words()
    assert words[0] == "torch: 2.9.0 | 2.13.0" and words[-2:] == ["only in the first: old", "only in the second: new"]


def test_the_spread_is_the_noise_or_the_error_of_the_median():
    steady, wide = timed("a", 10.0, noise=0.02), timed("a", 10.0, noise=0.02, p95_ms=14.0, repetitions=100)
    assert spread(steady) == 0.02
    assert spread(wide) == pytest.approx(1.5 * 4.0 / 10 / 10.0)
    assert spread({**wide, "repetitions": 4}) is None
    few = {**timed("a", 5.0), "repetitions": 1}
    (row,) = compare(made(few), made(timed("a", 50.0))).rows
    assert row.verdict == "spread unknown"


def test_another_gpu_is_compared_and_said():
    h100, h200 = ({"name": name, "memory_bytes": 1} for name in ("H100", "H200"))
    found = compare(made(timed("a", 10.0), gpu=h100), made(timed("a", 5.0), gpu=h200))
    assert found.circumstances == {"gpu": ("H100, 1", "H200, 1")} and found.rows[0].verdict == "faster"


@pytest.mark.parametrize(
    ("here", "there", "why"),
    [
        ({"geometry": {"window": 30, "nfe": 1}}, {"geometry": {"window": 15, "nfe": 1}}, "window 30 | 15"),
        ({"geometry": {"nfe": 4}}, {"geometry": {"nfe": 1}}, "nfe 4 | 1"),
        ({"video_frames": 81}, {"video_frames": 12}, "video_frames 81 | 12"),
        ({"timer": "CUDA events"}, {"timer": "wall clock"}, "timer CUDA events | wall clock"),
        ({"cold_l2": True}, {"cold_l2": False}, "cold_l2 True | False"),
    ],
)
def test_entries_that_measured_different_things_are_not_compared(here, there, why):
    found = compare(made(timed("a", 1.0, **here)), made(timed("a", 1.0, **there)))
    assert found.rows == () and found.not_compared == {"a": why}
    assert f"not compared: a: {why}" in found.in_words()


def test_a_condition_that_one_document_does_not_know_is_no_reason():
    found = compare(made(timed("a", 1.0, geometry={"window": 30})), made(timed("a", 1.0)))
    assert [row.name for row in found.rows] == ["a"]


def test_systems_of_one_name_are_compared_with_themselves():
    first = made(timed("k", 1.0, cold_l2=True), timed("k", 3.0, what_ran="torch", cold_l2=True))
    second = made(timed("k", 2.0, what_ran="torch", cold_l2=True), timed("k", 3.0, cold_l2=True))
    rows = {row.name: (row.first, row.second) for row in compare(first, second).rows}
    assert rows == {"k ours cold": (1.0, 3.0), "k torch cold": (3.0, 2.0)}


def test_repeated_entries_are_numbered_and_none_is_lost():
    found = compare(made(timed("k", 1.0), timed("k", 2.0)), made(timed("k", 4.0), timed("k", 8.0), timed("k", 16.0)))
    assert {row.name: (row.first, row.second) for row in found.rows} == {"k ours": (1.0, 4.0), "k ours #2": (2.0, 8.0)}
    assert found.only_second == ("k ours #3",)


def test_another_system_of_the_same_name_is_said():
    (row,) = compare(made(timed("k", 1.0, what_ran="eager")), made(timed("k", 1.0, what_ran="CUDA graphs"))).rows
    assert row.note == "eager | CUDA graphs"


def test_single_values_have_a_ratio_and_no_spread():
    def value(number: float, unit: str = "MB") -> dict[str, Any]:
        return {"name": "m", "value": number, "unit": unit, "predicted": None, "verdict": "", "what_ran": "x"}

    (row,) = compare(made(measurements=[value(6.0)]), made(measurements=[value(3.0)])).rows
    assert (row.unit, row.ratio, row.verdict) == ("MB", 2.0, "spread unknown")
    assert compare(made(measurements=[value(6.0)]), made(measurements=[value(0)])).rows[0].ratio is None
    other_unit = compare(made(measurements=[value(6.0)]), made(measurements=[value(6.0, "GB")]))
    assert other_unit.not_compared == {"m": "unit MB | GB"}


def test_the_command_prints_a_table_and_writes_the_comparison(tmp_path, capsys):
    files = written(tmp_path, a=made(timed("frame", 10.0)), b=made(timed("frame", 5.0)))
    assert main(["bench", "compare", *files, "--json", str(tmp_path / "c.json")]) == 0
    row = capsys.readouterr().out.splitlines()[-2].split()
    assert row == ["frame", "10.000", "±1.0%", "5.000", "±1.0%", "2.000", "ms,", "faster"]
    content = json.loads((tmp_path / "c.json").read_text())
    assert content["comparison"] == COMPARISON and content["rows"][0]["verdict"] == "faster"
    assert content["rows"][0]["ratio"] == 2.0 and "schema" not in content


def test_committed_documents_of_one_program_are_compared(capsys):
    names = ("cpu-2026-11-30-b3e0670-serve.json", "cpu-2026-11-30-9eb6349-soak.json")
    assert main(["bench", "compare", *(str(RESULTS / name) for name in names)]) == 0
    printed = capsys.readouterr().out
    assert "commit: b3e0670 | 9eb6349" in printed and "serve/mini-person/one" in printed
    assert "only in the second: serve/soak/first, serve/soak/last" in printed


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"schema": 2}, "b.json: expected schema 1, got 2"),
        ({**made(), "rehearsal": True}, "b.json: expected measurements, got a rehearsal, whose times mean nothing"),
        (made({"name": "a"}), "b.json: expected entries of schema 1, got results[0] lacks baseline, and 12 more"),
        (made(timed("other", 1.0)), "a.json has as well, got entries of other names only"),
        (made(timed("a", 1.0, geometry={"window": 2})), "a.json has as well, got a with window 1 | 2"),
    ],
    ids=["schema", "rehearsal", "damaged", "other names", "other geometry"],
)
def test_documents_that_cannot_be_compared_are_refused_in_one_line(tmp_path, capsys, second, message):
    files = written(tmp_path, a=made(timed("a", 1.0, geometry={"window": 1})), b=second)
    assert main(["bench", "compare", *files]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and captured.out == ""


def test_files_that_are_none(tmp_path, capsys):
    (here,) = written(tmp_path, a=made(timed("a", 1.0)))
    assert main(["bench", "compare", here, "nothing.json"]) == 2
    assert "second: expected a file, got nothing.json, which does not exist" in capsys.readouterr().err
    assert main(["bench", "compare", str(tmp_path), here]) == 2
    assert f"first: expected a file, got the folder {tmp_path}" in capsys.readouterr().err


def test_it_needs_no_torch(tmp_path):
    files = written(tmp_path, a=made(timed("a", 1.0)), b=made(timed("a", 1.0)))
    code = "import sys; from aapt_fast.cli import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, "bench", "compare", *files], check=True, capture_output=True)
