# SPDX-License-Identifier: Apache-2.0
"""The check of a GPU: its stages with small programs in their place, and the script around it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from bench import gpu_check
from bench.gpu_check import Stage, run_stages, stages
from bench.harness.program import NO_GPU, ROOT

from aapt_fast.profiling.document import Document
from aapt_fast.profiling.schema import problems

WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


@pytest.fixture
def document(tmp_path: Path) -> Document:
    return Document.new("pytest", tmp_path / gpu_check.DOCUMENT)


def shell(name: str, program: str, limit_s: float = 20) -> Stage:
    return Stage(name, limit_s, ["sh", "-c", program])


def run(document: Document, *todo: Stage, seconds: float = 60) -> bool:
    return run_stages(document, todo, time.monotonic() + seconds)


def found(document: Document) -> dict[str, tuple[str, str]]:
    """Status and detail of each stage, as the file has them."""
    content = json.loads(document.path.read_text())
    assert problems(content) == []
    return {entry["name"]: (entry["status"], entry["detail"]) for entry in content["stages"]}


@pytest.mark.parametrize("rehearse", [False, True])
def test_ten_minutes_are_enough_and_the_first_four_have_what_counts_most(rehearse, tmp_path):
    todo = stages(tmp_path, rehearse, tmp_path)
    assert gpu_check.TOTAL_S <= 10 * 60 - 30  # the installation, and the end of the last process
    assert sum(stage.limit_s for stage in todo) <= gpu_check.TOTAL_S
    first = todo[:3]
    assert [stage.name for stage in first] == ["doctor", "verify", "frame"]
    assert sum(stage.limit_s for stage in first) <= 4 * 60


def test_no_stage_stops_the_next_and_each_is_in_the_file_when_it_ends(document):
    seen = document.path.with_name("seen")
    peek = shell("peek", f"cp {document.path} {seen}; echo done")
    assert not run(document, shell("bad", "echo why; exit 3"), Stage("absent", 5, "no tool"), peek)
    status, detail = found(document).pop("bad")
    assert status == "failed" and detail.startswith("failed after ") and detail.endswith(" s: why")
    assert found(document)["absent"] == ("skipped", "no tool") and found(document)["peek"] == ("passed", "done")
    assert [entry["name"] for entry in json.loads(seen.read_text())["stages"]] == ["bad", "absent"]
    assert "$ sh -c echo why; exit 3\nwhy\n[failed, " in document.path.with_name(gpu_check.LOG).read_text()


ADD_A_FAILURE = """
import json, sys
content = json.load(open(sys.argv[1]))
content["failures"].append({"name": "a", "what_ran": "b", "reason": "c"})
json.dump(content, open(sys.argv[1], "w"))
"""


def test_a_stage_that_hangs_is_ended_and_what_programs_wrote_is_kept(document):
    writes = Stage("writes", 30, [sys.executable, "-c", ADD_A_FAILURE, str(document.path)])
    assert not run(document, shell("hangs", "echo begun; sleep 60", 6), writes, seconds=36)
    status, detail = found(document)["hangs"]
    assert status == "failed" and detail.startswith("ran out of time after ") and detail.endswith(": begun")
    assert found(document)["writes"][0] == "passed"
    assert [entry["name"] for entry in json.loads(document.path.read_text())["failures"]] == ["a"]


def test_saved_time_goes_to_later_stages_but_not_what_those_behind_them_need(document):
    todo = [shell(name, "true", limit) for name, limit in (("a", 300), ("b", 200), ("c", 300))]
    assert run(document, *todo, seconds=1000)
    limits = [entry["limit_s"] for entry in document.content["stages"]]
    assert limits == pytest.approx([500, 700, 1000], abs=90)  # less what the programs before took
    assert not run(document, shell("late", "true"), seconds=1)
    assert found(document)["late"] == ("failed", "no time left")


def test_the_document_has_the_report_of_doctor_and_the_findings_of_verify(document):
    findings = document.path.with_name(gpu_check.VERIFIED)
    doctor = shell("doctor", """echo hello; echo '{"build": {"cuda": true}}'""")
    verify = shell("verify", f"""echo '{{"verified": {{"passed": false, "on": ["a/b"]}}}}' > {findings}; exit 1""")
    assert not run(document, doctor, verify)
    content = json.loads(document.path.read_text())
    assert content["doctor"]["build"] == {"cuda": True} and content["verified"] == {"passed": False, "on": ["a/b"]}
    assert found(document) == {"doctor": ("passed", "cuda True"), "verify": ("failed", "on from now on: a/b")}


def test_the_record_of_the_user_stays_as_it_is(document):
    assert run(document, shell("cache", "echo $XDG_CACHE_HOME"))
    assert found(document)["cache"] == ("passed", str(document.path.with_name("cache")))


def test_the_sanitizer_runs_where_it_is_installed(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_check.sanitizer("memcheck", False) == "compute-sanitizer is not in PATH"
    fake = tmp_path / "compute-sanitizer"
    fake.write_text("#!/bin/sh\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    command = gpu_check.sanitizer("racecheck", False)
    assert command[:3] == [str(fake), "--tool", "racecheck"] and command[-3:] == [
        "bench.bench_kernels",
        "--tiny",
        "--check",
    ]
    assert isinstance(gpu_check.sanitizer("racecheck", True), str)


def test_a_rehearsal_verifies_an_emulated_kernel(request, tmp_path, monkeypatch):
    build = Path(request.config.getoption("--emulated-build"))
    every = stages(tmp_path, True, build)
    monkeypatch.setattr(gpu_check, "stages", lambda *_: [stage for stage in every if stage.name == "verify"])
    arguments = ["gpu_check", "--out", str(tmp_path), "--commit", "abc", "--rehearse", "--emulated-build", str(build)]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(gpu_check.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        gpu_check.main()
    content = json.loads((tmp_path / gpu_check.DOCUMENT).read_text())
    assert ended.value.code == 0, content["stages"]
    assert content["commit"] == "abc" and content["rehearsal"] is True and problems(content) == []
    assert content["verified"]["kernel"] == gpu_check.REHEARSED and content["verified"]["fault"] is None


def test_another_package_than_that_of_the_wheel_is_noticed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--package", str(tmp_path), "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        gpu_check.main()
    assert ended.value.code == 2 and list(tmp_path.iterdir()) == []
    assert "--wheel: expected a Python that imports aapt_fast from it, got one that takes " in capsys.readouterr().err


# ---- the script ----


def script(tmp_path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHON": sys.executable, **environment}
    command = ["bash", str(ROOT / "bench" / "gpu_check.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=variables, cwd=tmp_path, timeout=240)


@WITHOUT_GPU
def test_without_a_gpu_the_script_says_so_and_writes_nothing(tmp_path):
    ended = script(tmp_path, "--out", "out")
    assert ended.returncode == NO_GPU, ended.stderr
    assert ended.stdout.startswith(f"no GPU: torch {torch.__version__}, built for CUDA ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "python", "words"),
    [
        (["--wheel"], "/bin/false", "--wheel: expected a file, got none"),
        ([], "/bin/false", "PYTHON: expected a program that imports torch and aapt_fast, got '/bin/false'"),
    ],
)
def test_mistakes_that_the_script_finds(tmp_path, arguments, python, words):
    ended = script(tmp_path, *arguments, PYTHON=python)
    assert (ended.returncode, ended.stderr.strip()) == (2, words)
