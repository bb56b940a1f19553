# SPDX-License-Identifier: Apache-2.0
"""Other people's pipelines in the document of a GPU run."""

from __future__ import annotations

import json

import pytest
from bench import time_pipeline

from aapt_fast.profiling.schema import problems

PIPELINES = """
import time

calls = []

def open_slow():
    return lambda: time.sleep(0.02)

def open_quick():
    return lambda: calls.append(1)

def open_broken():
    raise RuntimeError("no weights")

def open_fragile():
    steps = iter(range(3))
    return lambda: next(steps)

def open_nothing():
    return None
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "their_pipelines.py").write_text(PIPELINES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(time_pipeline.sys.path))
    monkeypatch.delitem(time_pipeline.sys.modules, "their_pipelines", raising=False)
    return tmp_path


def run(folder, *pipelines: str) -> tuple[int, dict]:
    options = ["--out", str(folder / "out.json"), "--video-frames", "12", "--steps", "4", "--warm-up", "1"]
    status = time_pipeline.main([*options, *(f"{name}=their_pipelines:open_{name}" for name in pipelines)])
    return status, json.loads((folder / "out.json").read_text())


def test_pipelines_take_turns_and_are_compared_with_the_first(folder, capsys):
    status, document = run(folder, "slow", "quick")
    slow, quick = document["results"]
    assert status == 0 and problems(document) == [] and document["failures"] == []
    assert slow["baseline"] == quick["baseline"] == "slow" and slow["ratio"] == 1.0 and quick["ratio"] > 1
    assert slow["p50_ms"] >= 20 and slow["video_fps"] == pytest.approx(12e3 / slow["p50_ms"])
    assert slow["repetitions"] == 4 and len(time_pipeline.sys.modules["their_pipelines"].calls) == 5
    assert "quick: p50" in capsys.readouterr().out


def test_what_fails_is_noted_and_the_others_go_on(folder, capsys):
    status, document = run(folder, "broken", "fragile", "nothing", "quick")
    assert status == 1 and [result["what_ran"] for result in document["results"]] == ["quick"]
    reasons = {failure["what_ran"]: failure["reason"] for failure in document["failures"]}
    assert reasons["broken"] == "RuntimeError: no weights" and reasons["fragile"].startswith("StopIteration")
    assert "expected to get a function without arguments, got NoneType" in reasons["nothing"]
    assert "broken: no result: RuntimeError: no weights" in capsys.readouterr().out


def test_without_a_single_result(folder):
    status, document = run(folder, "broken")
    assert status == 1 and document["results"] == []


@pytest.mark.parametrize("place", ["their_pipelines", ":open_slow", "their_pipelines:open slow"])
def test_places_of_another_form(place):
    with pytest.raises(ValueError, match="pipeline: expected MODULE:FUNCTION"):
        time_pipeline.open_pipeline(place)


@pytest.mark.parametrize(
    "arguments", [["a"], ["a=b:c", "a=b:c"], ["a=b:c", "--steps", "0"], ["a=b:c", "--video-frames", "0"]]
)
def test_bad_arguments(arguments, tmp_path):
    with pytest.raises(SystemExit) as error:
        time_pipeline.main(["--out", str(tmp_path / "out.json"), "--video-frames", "4", *arguments])
    assert error.value.code == 2 and not list(tmp_path.iterdir())
