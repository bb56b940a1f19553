# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import sys

import pytest
from bench import report
from bench.report import BEGIN, END, NOTHING, README, RESULTS, gpu_section, load, others, with_section

from aapt_fast.profiling.document import Document


def test_the_readme_shows_what_the_results_say():
    readme = README.read_text()
    assert with_section(readme, gpu_section(load(RESULTS))) == readme, "run python -m bench.report --write"


@pytest.fixture
def document(tmp_path):
    """The document of a run on a GPU."""
    document = Document.new("bench/gpu_check.sh", tmp_path / "results" / "gpu.json", commit="abc1234")
    times = {"p50_ms": 1.0, "p95_ms": 1.25, "p99_ms": 1.5, "tflops": 527.0, "share_of_ceiling": 0.66}
    result = {
        "name": "kernel/paged_attention/1196x35880x24x128/bf16",
        **times,
        "baseline": "SDPA cuDNN",
        "ratio": 0.9,
        "cold_l2": True,
        "what_ran": "paged_attention/portable",
        "ours": True,
        "launch": "stream",
    }
    document.set(gpu={"name": "Big GPU", "capability": "9.0"}, ceilings={"matmul_tflops": 790.0, "copy_tb_s": 4.3})
    for change in ({}, {"what_ran": "warm one", "cold_l2": False}, {"what_ran": "graph", "launch": "CUDA graph"}):
        document.add("results", {**result, **change})
    document.add("results", {**result, "ours": False, "what_ran": "SDPA flash"})
    frame = {"name": "frame/aapt-8b/736x416/bf16", "cold_l2": None, "tflops": None, "what_ran": "eager; kernels off"}
    document.add("results", {**result, **frame, "ours": False, "ratio": None})
    measured = {"name": "3/attention", "value": 612.3, "unit": "TFLOP/s", "predicted": [585, 585]}
    document.add("measurements", {**measured, "verdict": "within 20 % of the prediction", "what_ran": "SDPA cuDNN"})
    counts = {"good": True, "passed": 5, "failed": 0, "skipped": 1}
    document.set(tests={"tests/a.py": counts, "tests/b.py": {**counts, "good": False, "failed": 2}})
    return document


def test_the_section_of_a_gpu_run(document):
    section = gpu_section(load(document.path.parent))
    assert "Big GPU" in section and "commit abc1234" in section and "790 TFLOP/s" in section and "gpu.json" in section
    rows = [line for line in section.splitlines() if line.startswith("| kernel/") or line.startswith("| frame/")]
    assert rows == [
        "| kernel/paged_attention/1196x35880x24x128/bf16 | paged_attention/portable | 1 | 1.25 | 1.5 | 527 | 66% | "
        "0.90 (SDPA cuDNN) |",
        "| frame/aapt-8b/736x416/bf16 | eager; kernels off | 1 | 1.25 | 1.5 | - | 66% | - |",
    ]
    assert "| 3/attention | SDPA cuDNN | 612.3 TFLOP/s | 585 | within 20 % of the prediction |" in section
    assert "Tests in 2 files: 10 passed, 2 failed, 2 skipped. Not good: `tests/b.py`." in section


@pytest.mark.parametrize("change", [{"rehearsal": True}, {"gpu": None}, {"schema": 2}])
def test_rehearsals_and_runs_without_a_gpu_do_not_count(document, change):
    content = {**document.content, **change}
    assert gpu_section({"x.json": content}) == NOTHING
    assert others({"x.json": content})


def test_the_latest_run_of_each_gpu_counts(document):
    other = {**document.content, "gpu": {"name": "Another GPU"}, "date": "2020-01-01"}
    older, newer = ({**document.content, "date": date, "commit": date} for date in ("2026-01-01", "2026-02-01"))
    section = gpu_section({"new.json": newer, "old.json": older, "other.json": other})
    assert section.index("Another GPU") < section.index("Big GPU")
    assert "2026-02-01" in section and "2026-01-01" not in section


def test_other_documents_are_tables_or_words():
    times = {"name": "a", "p50_ms": 1.0, "p95_ms": 2.0, "p99_ms": 3.0}
    text = others(
        {
            "strange.json": {"schema": "theirs"},
            "unnamed.json": {"schema": "aapt_fast.bench/1", "results": [{"median_ms": 1}]},
            "named.json": {"schema": "aapt_fast.bench/1", "results": [{**times, "baseline": None}]},
        }
    )
    assert "strange.json: schema 'theirs', without a result that has a name and times." in text
    assert "unnamed.json: schema 'aapt_fast.bench/1', without" in text
    assert "named.json:" in text and "| a | 1 | 2 | 3 | - |" in text


def test_the_committed_results_can_be_read():
    assert load(RESULTS)
    assert others(load(RESULTS))


def test_broken_files_and_markers_are_named(tmp_path):
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json: expected JSON"):
        load(tmp_path)
    for text in ("", BEGIN, END + BEGIN, BEGIN + BEGIN + END):
        with pytest.raises(ValueError, match="expected once each"):
            with_section(text, "x")


def test_write_and_check_on_the_command_line(document, tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")

    def call(action):
        arguments = [action, "--readme", str(readme), "--results", str(document.path.parent)]
        monkeypatch.setattr(sys, "argv", ["report", *arguments])
        try:
            report.main()
        except SystemExit as stop:
            return stop.code
        return 0

    assert call("--check") == 1
    assert call("--write") == 0 and call("--check") == 0
    text = readme.read_text()
    assert text.startswith(f"before\n{BEGIN}\nBig GPU") and text.endswith(f"{END}\nafter\n") and "old" not in text
    document.path.write_text(json.dumps({**document.content, "commit": "fedcba9"}))
    assert call("--check") == 1
