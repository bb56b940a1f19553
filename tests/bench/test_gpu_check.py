# SPDX-License-Identifier: Apache-2.0
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
from bench.gpu_check import BUILD_S, STAGES, Run, Stage, run_stages
from bench.harness.document import Document, problems
from bench.harness.processes import WRONG_KERNEL, Outcome

ROOT = Path(__file__).parents[2]
WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


@pytest.fixture
def run(tmp_path):
    Document.create(tmp_path / "gpu_check.json", "pytest")
    deadline = time.monotonic() + 60
    return Run(tmp_path, tmp_path, False, False, None, deadline, tmp_path / "log")


def stage(name: str, function, limit_s: float = 10, quick_limit_s: float = 10) -> Stage:
    return Stage(name, limit_s, quick_limit_s, "log", function)


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


def test_the_folder_gets_at_most_eight_files():
    assert len({s.log for s in STAGES} | {"install.log", gpu_check.DOCUMENT}) <= 8


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
    run.deadline = time.monotonic() + 5
    run_stages(run, [stage("a", lambda _, limit_s: (given.append(limit_s), ("passed", ""))[1], limit_s=100)])
    assert 3 < given[0] <= 5
    run.deadline = time.monotonic() + 1
    assert not run_stages(run, [stage("late", lambda *_: ("passed", ""))])
    assert stages_of(run)["late"] == ("skipped", "no time left")


def test_saved_time_goes_to_later_stages_but_not_what_those_behind_them_need(run):
    given = []

    def notes(_, limit_s):
        given.append(round(limit_s))
        return "passed", ""

    run.deadline = time.monotonic() + 100
    run_stages(run, [stage("a", notes, limit_s=30), stage("b", notes, limit_s=20), stage("c", notes, limit_s=30)])
    assert given == [50, 70, 100]  # none of them takes any time


def test_ops_behind_one_that_ended_its_process_are_tried_again(run, monkeypatch):
    """Attention and the first other op pass, the second one crashes without a word, the rest must run all the same."""
    from bench.kernels.__main__ import OPS

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


def test_the_check_begins_before_the_package_is_installed():
    source = "import sys; sys.modules['aapt_fast'] = None; import bench.gpu_check"
    subprocess.run([sys.executable, "-c", source], check=True, cwd=ROOT, timeout=120)


def test_a_quick_run_leaves_out_stages_without_a_quick_limit(run):
    run.quick = True
    assert run_stages(run, [stage("long", lambda *_: ("failed", ""), quick_limit_s=0)])
    assert stages_of(run)["long"] == ("skipped", "left out of a quick run")


def test_a_stage_that_hangs_is_ended_and_logged(run):
    def hangs(run, limit_s):
        return gpu_check._ended(run.command([sys.executable, "-c", "print('begun'); import time; time.sleep(60)"], 2))

    assert not run_stages(run, [stage("a", hangs)])
    status, detail = stages_of(run)["a"]
    assert status == "failed" and "ran out of time" in detail and "begun" in detail
    assert "begun\n[ran out of time" in run.log.read_text()


def test_test_files_run_apart_and_are_counted(run, monkeypatch):
    folder = run.scratch / "tests" / "kernels"
    folder.mkdir(parents=True)
    (run.scratch / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    option = "import pytest\ndef pytest_addoption(parser): parser.addoption('--target')\n"
    fixture = "@pytest.fixture\ndef target(request): return request.config.getoption('target')\n"
    (run.scratch / "conftest.py").write_text(option + fixture)
    (folder / "test_good.py").write_text("def test_a(target):\n    assert target == 'cuda'\n")
    (folder / "test_bad.py").write_text("def test_a(target): pass\ndef test_b(target): assert False\n")
    (folder / "test_dies.py").write_text("import os\ndef test_a(target): os.abort()\n")
    (folder / "test_arch.py").write_text("import pytest\ndef test_a(target): pytest.skip('another GPU')\n")
    (folder / "test_without_gpu.py").write_text("target = 1\ndef test_a(): assert False\n")
    monkeypatch.setattr(gpu_check, "ROOT", run.scratch)
    assert [file.name for file in gpu_check.test_files(probes=True)] == ["test_arch.py"]
    assert gpu_check.probes(run, 60) == ("skipped", "1 files, 0 tests passed, 1 skipped")
    assert gpu_check.tests(run, 60) == ("failed", "2 of 3 files: test_bad.py, test_dies.py")
    tests = run.document.content["tests"]
    assert {Path(name).name: (t["good"], t["passed"], t["failed"]) for name, t in tests.items()} == {
        "test_arch.py": (False, 0, 0),
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
def test_without_a_gpu_the_script_says_so_in_a_document(tmp_path):
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho 580.1\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    ended = script(tmp_path, "--out", "out", "--commit", "abc", path=f"{tmp_path}:{os.environ['PATH']}")
    assert ended.returncode == 3, ended.stderr
    assert "finds no GPU" in ended.stdout and "nvidia-smi answers (driver 580.1)" in ended.stdout
    content = json.loads((tmp_path / "out" / "gpu_check.json").read_text())
    assert problems(content) == []
    assert content["gpu"] is None and content["commit"] == "abc" and content["results"] == []
    assert [entry["name"] for entry in content["stages"]] == ["gpu"]


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
