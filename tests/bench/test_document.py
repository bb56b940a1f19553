# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import stat
import subprocess

import pytest
from bench.harness import document as module
from bench.harness.document import SECTIONS, Document, commit_of, nvidia_smi, problems

RESULT = {
    "name": "kernel/paged_attention/1196x35880x24x128/bf16",
    "p50_ms": 1.0,
    "p95_ms": 1.5,
    "p99_ms": 1.5,
    "tflops": 500.0,
    "share_of_ceiling": 0.7,
    "baseline": "SDPA cuDNN, contiguous",
    "ratio": 0.9,
    "cold_l2": True,
    "what_ran": "paged_attention/portable",
}


@pytest.fixture
def document(tmp_path):
    return Document.create(tmp_path / "new folder" / "results.json", "pytest")


def on_disk(document):
    return json.loads(document.path.read_text())


def test_a_new_document_fits_the_schema(document):
    content = on_disk(document)
    assert problems(content) == []
    assert content["schema"] == 1 and content["command"] == "pytest"
    assert all(content[section] == [] for section in SECTIONS)


def test_every_entry_is_on_the_disk_at_once_and_a_second_process_adds_to_it(document):
    document.add("results", RESULT)
    second = Document.open(document.path, "another command")
    second.add("results", {**RESULT, "ratio": None, "tflops": None})
    second.set("ceilings", {"matmul_tflops": 790.0})
    second.fail("x", "y", RuntimeError("two\n lines"))
    content = on_disk(document)
    assert [entry["ratio"] for entry in content["results"]] == [0.9, None]
    assert content["command"] == "pytest" and content["ceilings"] == {"matmul_tflops": 790.0}
    assert content["failures"] == [{"name": "x", "what_ran": "y", "reason": "RuntimeError: two lines"}]
    assert problems(content) == []


@pytest.mark.parametrize(
    ("section", "entry", "message"),
    [
        ("results", {key: value for key, value in RESULT.items() if key != "cold_l2"}, "lacks cold_l2"),
        ("results", {**RESULT, "p50_ms": 2.0}, "0 < p50_ms <= p95_ms"),
        ("results", {**RESULT, "p99_ms": "1.5"}, "0 < p50_ms <= p95_ms"),
        ("measurements", {"name": "1/l2"}, "lacks value"),
        ("verified", {"kernel": "a/b", "architecture": "sm_90", "passed": True}, "lacks hash"),
        ("resluts", {}, "expected a section"),
    ],
)
def test_an_entry_that_does_not_fit_is_refused_and_found(document, section, entry, message):
    with pytest.raises(ValueError, match=message):
        document.add(section, entry)
    assert on_disk(document)["results"] == []
    if section in SECTIONS:
        assert any(message in problem for problem in problems({**on_disk(document), section: [entry]}))


def test_problems_names_what_is_missing(document):
    content = on_disk(document)
    assert problems({**content, "schema": 2}) == ["expected schema 1, got 2"]
    assert problems({key: value for key, value in content.items() if key != "driver"}) == ["lacks driver"]
    assert problems({**content, "results": None}) == ["results: expected a list, got NoneType"]


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
        document.set("ceilings", {"matmul_tflops": float("nan")})
    assert on_disk(document)["ceilings"] == {}


def test_another_schema_is_not_written_to(tmp_path):
    path = tmp_path / "old.json"
    path.write_text('{"schema": "aapt_fast.profiling/1"}')
    with pytest.raises(ValueError, match=r"expected schema 1, got 'aapt_fast\.bench/1'"):
        Document.open(path, "pytest")


def test_commit_of_a_checkout_and_of_something_else(tmp_path):
    assert commit_of(tmp_path) == "unknown"
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "file").write_text("1")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    clean = commit_of(tmp_path)
    assert len(clean) >= 7 and not clean.endswith("+")
    (tmp_path / "file").write_text("2")
    assert commit_of(tmp_path) == clean + "+"


@pytest.mark.parametrize(
    ("script", "answer"),
    [
        ('echo "$1" | grep -q "^--query-gpu=" && echo "580.1, 1980 MHz"', "580.1, 1980 MHz"),
        ("echo NVIDIA-SMI has failed; exit 9", None),
        ("exit 0", None),
    ],
    ids=["answers", "fails", "says nothing"],
)
def test_nvidia_smi_is_asked_and_may_be_broken_or_absent(tmp_path, monkeypatch, script, answer):
    fake = tmp_path / "nvidia-smi"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert nvidia_smi("driver_version") == answer
    monkeypatch.setenv("PATH", "/nowhere")
    assert nvidia_smi("driver_version") is None
