# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import stat
import subprocess
from types import SimpleNamespace

import pytest
import torch
from bench.harness.program import open_document

from aapt_fast.profiling import document as module
from aapt_fast.profiling.document import Document, ask_gpu, commit, result
from aapt_fast.profiling.schema import SECTIONS, problems
from aapt_fast.profiling.timing import Sample

RESULT = result(
    "kernel/paged_attention/1196x35880x24x128/bf16",
    Sample((1.0, 1.0, 1.5), True, "CUDA events"),
    "paged_attention/portable",
    baseline="SDPA cuDNN, contiguous",
    ratio=0.9,
    tflops=500.0,
)


@pytest.fixture
def document(tmp_path):
    return Document.new("pytest", tmp_path / "new folder" / "results.json")


def on_disk(document):
    return json.loads(document.path.read_text())


def test_a_new_document_fits_the_schema(document):
    content = on_disk(document)
    assert problems(content) == []
    assert content["schema"] == 1 and content["command"] == "pytest"
    assert all(content[section] == [] for section in SECTIONS)
    assert json.loads(document.line()) == content


def test_every_entry_is_on_the_disk_at_once_and_a_second_process_adds_to_it(document):
    document.add("results", RESULT)
    second = Document.open(document.path, "another command")
    second.add("results", {**RESULT, "ratio": None, "tflops": None})
    second.set(ceilings={"matmul_tflops": 790.0})
    assert second.fail("x", "y", RuntimeError("two\n lines")) == "RuntimeError: two lines"
    second.note_clocks("before x")
    content = on_disk(document)
    assert [entry["ratio"] for entry in content["results"]] == [0.9, None]
    assert content["command"] == "pytest" and content["ceilings"] == {"matmul_tflops": 790.0}
    assert content["failures"] == [{"name": "x", "what_ran": "y", "reason": "RuntimeError: two lines"}]
    assert content["clocks"][0]["when"] == "before x" and problems(content) == []


def test_a_document_without_a_path_stays_in_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    document = Document.new("pytest")
    document.add("results", RESULT)
    assert document.content["results"] == [RESULT] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("section", "entry", "message"),
    [
        ("results", {key: value for key, value in RESULT.items() if key != "cold_l2"}, "lacks cold_l2"),
        ("results", {**RESULT, "p50_ms": 2.0}, "0 < p50_ms <= p95_ms"),
        ("results", {**RESULT, "p99_ms": "1.5"}, "0 < p50_ms <= p95_ms"),
        ("measurements", {"name": "1/l2"}, "lacks value"),
        ("failures", {"name": "a", "what_ran": "b"}, "lacks reason"),
    ],
)
def test_problems_finds_an_entry_that_does_not_fit(document, section, entry, message):
    assert any(message in problem for problem in problems({**on_disk(document), section: [entry]}))


def test_problems_names_what_is_missing(document):
    content = on_disk(document)
    assert problems({**content, "schema": 2}) == ["expected schema 1, got 2"]
    assert problems({key: value for key, value in content.items() if key != "driver"}) == ["lacks driver"]


def test_an_unknown_section_is_refused(document):
    with pytest.raises(ValueError, match="got resluts"):
        document.add("resluts", {})


def test_a_crash_while_writing_leaves_the_old_document_and_nothing_else(document, monkeypatch):
    document.add("results", RESULT)
    before = document.path.read_text()

    def crash(handle):
        raise OSError("disk full")

    monkeypatch.setattr(module.os, "fsync", crash)
    with pytest.raises(OSError, match="disk full"):
        document.add("results", RESULT)
    assert document.path.read_text() == before
    assert [path.name for path in document.path.parent.iterdir()] == ["results.json"]


def test_nan_is_refused_because_it_is_not_json(document):
    with pytest.raises(ValueError, match="not JSON compliant"):
        document.set(ceilings={"matmul_tflops": float("nan")})
    assert on_disk(document)["ceilings"] == {}


def test_another_schema_is_not_written_to(tmp_path):
    path = tmp_path / "old.json"
    path.write_text('{"schema": "aapt_fast.bench/1"}')
    with pytest.raises(ValueError, match=r"old\.json: expected schema 1, got aapt_fast\.bench/1"):
        open_document(path)


def test_commit_of_a_checkout_and_of_something_else(tmp_path):
    (tmp_path / "csrc").mkdir()
    assert commit(tmp_path).startswith("version ")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "file").write_text("1")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    clean = commit(tmp_path)
    assert len(clean) >= 7 and not clean.endswith("+")
    (tmp_path / "file").write_text("2")
    assert commit(tmp_path) == clean + "+"


@pytest.mark.parametrize(
    ("script", "answer"),
    [
        ('echo "$1" | grep -q "^--query-gpu=" && echo "580.1, 1980 MHz"', "580.1, 1980 MHz"),
        ("echo NVIDIA-SMI has failed; exit 9", None),
        ("exit 0", None),
    ],
    ids=["answers", "fails", "says nothing"],
)
def test_nvidia_smi_may_be_broken_or_absent(tmp_path, monkeypatch, script, answer):
    fake = tmp_path / "nvidia-smi"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert ask_gpu("driver_version") == answer
    monkeypatch.setenv("PATH", "/nowhere")
    assert ask_gpu("driver_version") is None


def test_nvidia_smi_is_asked_about_the_gpu_that_torch_has_chosen(tmp_path, monkeypatch):
    fake = tmp_path / "nvidia-smi"
    fake.write_text('#!/bin/sh\necho "$@"\n')
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    uuids = ("first", "0b1e-second")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=uuids[index]))
    answer = ask_gpu("driver_version")
    assert answer is not None and answer.split()[-1] == "--id=GPU-0b1e-second"
