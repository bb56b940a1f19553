# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bench import gpu_check
from bench.gpu_check import BUILD_S, STAGES, Run, Stage, run_stages
from bench.harness.processes import WRONG_KERNEL
from bench.harness.program import ROOT

from aapt_fast.profiling.document import Document
from aapt_fast.testing.documents import problems
from aapt_fast.verification.cases import SUITES
from aapt_fast.verification.processes import Outcome

OPS = list(SUITES)
WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


@pytest.fixture
def run(tmp_path):
    Document.new("pytest", tmp_path / "gpu_check.json")
    return Run(tmp_path, tmp_path, time.monotonic() + 60)


def with_time(run: Run, seconds: float) -> Run:
    return replace(run, deadline=time.monotonic() + seconds)


def stage(name: str, function, limit_s: float = 10, quick_limit_s: float = 10) -> Stage:
    return Stage(name, limit_s, quick_limit_s, function)


def stages_of(run: Run) -> dict[str, tuple[str, str]]:
    return {entry["name"]: (entry["status"], entry["detail"]) for entry in run.document.content["stages"]}


@pytest.mark.parametrize("quick", [False, True])
def test_the_limits_fit_the_promised_time(quick):
    install, total = (30, 225) if quick else (40, 525)
    assert total <= (4 if quick else 9) * 60 - 15  # what starting Python and ending processes takes
    assert install + sum(s.quick_limit_s if quick else s.limit_s for s in STAGES) <= total
    assert total > BUILD_S
    script = (ROOT / "bench" / "gpu_check.sh").read_text()
    assert f"total={total}\n" in script.replace(" ;;", "") and f"--kill-after 10 {BUILD_S} " in script


def test_no_stage_stops_the_next(run):
    def crashes(run, limit_s):
        raise KeyError("x")

    good = run_stages(
        run, [stage("a", lambda *_: ("failed", "why")), stage("b", crashes), stage("c", lambda *_: ("passed", ""))]
    )
    assert not good
    assert stages_of(run) == {"a": ("failed", "why"), "b": ("failed", "KeyError: 'x'"), "c": ("passed", "")}
    assert problems(run.document.content) == []


def test_stages_get_no_more_than_what_is_left(run):
    given = []

    def notes(_, limit_s):
        given.append(limit_s)
        return "passed", ""

    run_stages(with_time(run, 5), [stage("a", notes, limit_s=100)])
    assert 3 < given[0] <= 5
    assert not run_stages(with_time(run, 1), [stage("late", notes)])
    assert len(given) == 1 and stages_of(run)["late"] == ("skipped", "no time left")


def test_saved_time_goes_to_later_stages_but_not_what_those_behind_them_need(run):
    given = []

    def notes(_, limit_s):
        given.append(round(limit_s))
        return "passed", ""

    stages = [stage("a", notes, limit_s=30), stage("b", notes, limit_s=20), stage("c", notes, limit_s=30)]
    run_stages(with_time(run, 100), stages)
    assert given == [50, 70, 100]  # none of them takes any time


def test_ops_behind_one_that_ended_its_process_are_tried_again(run, monkeypatch):
    """Attention and the first other op pass, the second one crashes without a word, the rest must run all the same."""
    asked = []

    def module(self, name, *arguments, limit_s):
        ops = [word for word in arguments if word in OPS]
        asked.append(ops)
        for op in ops:
            self.document.fail(f"kernel/{op}/1/bf16", "x", "y")
            if op == OPS[2]:
                return Outcome("failed", -6, 1.0, "aborted")
        return Outcome("passed", 0, 1.0, "")

    monkeypatch.setattr(Run, "module", module)
    status, detail = gpu_check.kernels(run, 60)
    assert asked == [[OPS[0]], list(OPS[1:]), list(OPS[3:])]
    assert status == "failed" and "aborted" in detail


def test_wrong_results_are_no_reason_to_run_an_op_again(run, monkeypatch):
    asked = []

    def module(self, name, *arguments, limit_s):
        asked.append(arguments)
        return Outcome("failed", WRONG_KERNEL, 1.0, "paged_attention disagrees")

    monkeypatch.setattr(Run, "module", module)
    assert gpu_check.kernels(run, 60)[0] == "failed" and len(asked) == 2


def test_a_quick_run_leaves_out_stages_without_a_quick_limit(run):
    assert run_stages(replace(run, quick=True), [stage("long", lambda *_: ("failed", ""), quick_limit_s=0)])
    assert stages_of(run)["long"] == ("skipped", "left out of a quick run")


def test_a_stage_that_hangs_is_ended_and_logged(run):
    def hangs(run, limit_s):
        return gpu_check.ended(run.command([sys.executable, "-c", "print('begun'); import time; time.sleep(60)"], 2))

    assert not run_stages(run, [stage("a", hangs)])
    status, detail = stages_of(run)["a"]
    assert status == "failed" and "ran out of time" in detail and "begun" in detail
    assert "begun\n[ran out of time" in (run.out / gpu_check.LOG).read_text()


def test_test_files_run_apart_and_are_counted(run, monkeypatch):
    folder = run.scratch / "tests" / "kernels"
    folder.mkdir(parents=True)
    (run.scratch / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    option = "import pytest\ndef pytest_addoption(parser): parser.addoption('--target')\n"
    fixture = "@pytest.fixture\ndef target(request): return request.config.getoption('target')\n"
    hopper = "@pytest.fixture\ndef hopper(target): return target\n"
    (run.scratch / "conftest.py").write_text(option + fixture + hopper)
    (folder / "test_good.py").write_text("def test_a(target):\n    assert target == 'cuda'\n")
    (folder / "test_bad.py").write_text("def test_a(target): pass\ndef test_b(target): assert False\n")
    (folder / "test_dies.py").write_text("import os\ndef test_a(hopper): os.abort()\n")
    (folder / "test_arch.py").write_text("import pytest\ndef test_a(target): pytest.skip('another GPU')\n")
    (folder / "test_without_gpu.py").write_text("target = 1\ndef test_a(): assert False\n")
    monkeypatch.setattr(gpu_check, "ROOT", run.scratch)
    assert gpu_check.probes(run, 60) == ("skipped", "1 files, 0 tests passed, 1 skipped")
    assert gpu_check.tests(run, 60) == ("failed", "2 of 3 files: test_bad.py, test_dies.py")
    tests = run.document.content["tests"]
    assert {Path(name).name: (t["good"], t["passed"], t["failed"]) for name, t in tests.items()} == {
        "test_arch.py": (True, 0, 0),
        "test_good.py": (True, 1, 0),
        "test_bad.py": (False, 1, 1),
        "test_dies.py": (False, 0, 1),
    }


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ("exit 0", "passed", "memcheck, racecheck"),
        ('case "$*" in *racecheck*) echo hazard; exit 99;; esac', "failed", "racecheck: failed after"),
        ('case "$*" in *kernel-regex*) echo "unknown option kernel-regex"; exit 1;; esac', "passed", "memcheck"),
        (None, "skipped", "not in PATH"),
    ],
    ids=["clean", "a race", "an older version", "absent"],
)
def test_the_sanitizer_is_taken_at_its_word(run, monkeypatch, body, status, words):
    if body is not None:
        fake = run.scratch / "compute-sanitizer"
        fake.write_text(f"#!/bin/sh\n{body}\n")
        fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(run.scratch))
    found, detail = gpu_check.sanitizer(run, 20)
    assert found == status and words in detail


def script(tmp_path: Path, *arguments: str, path: str | None = None, **environment: str):
    variables = {**os.environ, "PYTHON": sys.executable, **environment, **({"PATH": path} if path else {})}
    command = ["bash", str(ROOT / "bench" / "gpu_check.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=variables, cwd=tmp_path, timeout=120)


@WITHOUT_GPU
def test_without_a_gpu_the_script_says_so(tmp_path):
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho 580.1\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    ended = script(tmp_path, "--out", "out", path=f"{tmp_path}:{os.environ['PATH']}")
    assert ended.returncode == 3, ended.stderr
    assert "no GPU: torch" in ended.stdout and "driver 580.1" in ended.stdout
    assert not (tmp_path / "out").exists()


def test_the_program_writes_a_document_with_every_stage(tmp_path, monkeypatch):
    def passes(run, limit_s):
        """Pass."""
        return "passed", ""

    monkeypatch.setattr(sys, "argv", ["gpu_check", "--out", str(tmp_path), "--commit", "abc", "--rehearse"])
    monkeypatch.setattr(gpu_check, "STAGES", (stage("one", passes),))
    monkeypatch.setattr(gpu_check.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        gpu_check.main()
    document = Document.open(tmp_path / "gpu_check.json", "").content
    assert ended.value.code == 0 and problems(document) == []
    assert document["commit"] == "abc" and document["rehearsal"] is True
    assert [entry["name"] for entry in document["stages"]] == ["one"]


@pytest.mark.parametrize(
    ("arguments", "python", "status", "words"),
    [
        (["--fast"], None, 2, "unknown argument '--fast'"),
        (["--out"], None, 2, "--out: expected a value, got none"),
        ([], "/no/python", 2, "PYTHON: expected a program, got '/no/python'"),
        ([], "/bin/false", 3, "no torch"),
        (["--plan", "--quick"], None, 0, "at most 225 s"),
    ],
)
def test_arguments_of_the_script(tmp_path, arguments, python, status, words):
    ended = script(tmp_path, *arguments, **({"PYTHON": python} if python else {}))
    assert ended.returncode == status, ended.stdout + ended.stderr
    assert words in ended.stdout + ended.stderr
    assert list(tmp_path.iterdir()) == []
