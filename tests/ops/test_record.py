# SPDX-License-Identifier: Apache-2.0
"""The record of `aapt-fast verify` on the disk, and the sentence for each way in which it does not count."""

from __future__ import annotations

import json
import os
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from aapt_fast.ops import record
from aapt_fast.ops.record import Identity, Verified

HERE = Identity("NVIDIA H200", "9.0", "580.65.06", "a" * 64)
FAST = Verified(None, {"1x2/bf16": 2.0, "3x4/bf16": 0.9})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def file_of(identity: Identity = HERE) -> Path:
    return record.path_of(identity.gpu, identity.capability)


def test_it_reads_what_it_has_written(cache: Path) -> None:
    kernels = {"kv_write/portable": FAST, "paged_attention/sm90": Verified("output 0: expected 1, got 2")}
    written = record.add(HERE, kernels)
    found = record.read(file_of(), HERE)
    assert found.record == written and found.problem is None and dict(written.kernels) == kernels
    assert [path.name for path in (cache / "aapt_fast" / "verified").iterdir()] == ["nvidia-h200-9.0.json"]
    assert found.in_words().startswith(f"{file_of()}, made ") and "1 of 2 kernels" in found.in_words()


def test_a_later_run_replaces_the_kernels_that_it_has_tried() -> None:
    record.add(HERE, {"a/b": FAST, "c/d": FAST})
    known = record.add(HERE, {"a/b": Verified("wrong")})
    assert known.obstacle("a/b") == "it failed on this GPU: wrong" and known.obstacle("c/d") is None


@pytest.mark.parametrize("other", [replace(HERE, driver="570.1"), replace(HERE, build="b" * 64)])
def test_a_later_run_with_another_driver_or_build_begins_anew(other: Identity) -> None:
    record.add(HERE, {"a/b": FAST})
    assert set(record.add(other, {"c/d": FAST}).kernels) == {"c/d"}


def test_a_run_at_shapes_that_a_kernel_does_not_take_keeps_its_times() -> None:
    untimed, wrong = Verified(None), Verified("output 0: expected 1, got 2")
    for earlier, later, kept in ((FAST, untimed, FAST), (FAST, wrong, wrong), (wrong, untimed, untimed)):
        record.add(HERE, {"a/b": earlier})
        assert record.add(HERE, {"a/b": later}).kernels["a/b"] == kept


def test_every_gpu_has_a_file_of_its_own() -> None:
    other = replace(HERE, gpu="NVIDIA GeForce RTX 4090", capability="8.9")
    for identity, kernel in ((HERE, "a/b"), (other, "c/d")):
        record.add(identity, {kernel: FAST})
    assert set(record.read(file_of(), HERE).record.kernels) == {"a/b"}
    assert set(record.read(file_of(other), other).record.kernels) == {"c/d"}


@pytest.mark.parametrize(
    ("verified", "obstacle"),
    [
        (FAST, None),
        (Verified(None, {"x": 1.0}), None),
        (Verified(None, {"x": 0.5, "y": 1.0}), "it is right on this GPU, but takes 1.41 times as long as torch's best"),
        (Verified(), "it is right on this GPU, but could be timed at none of the shapes"),
        (Verified("output 1: nan", {"x": 9.0}), "it failed on this GPU: output 1: nan"),
    ],
)
def test_a_kernel_is_on_if_it_is_right_and_not_slow(verified: Verified, obstacle: str | None) -> None:
    known = record.add(HERE, {"a/b": verified})
    assert known.obstacle("a/b") == obstacle
    assert known.obstacle("c/d") == "`aapt-fast verify` has not tried it on this GPU" and known.speed("c/d") == 0


@pytest.mark.parametrize(
    ("here", "problem"),
    [
        (replace(HERE, driver="590.1"), f"is of driver {HERE.driver}, this machine has 590.1"),
        (replace(HERE, build="b" * 64), "is of another build of aapt_fast"),
        (replace(HERE, gpu="NVIDIA  H200"), "is of another GPU, NVIDIA H200"),  # its file has the same name
    ],
)
def test_a_record_of_something_else_does_not_count(here: Identity, problem: str) -> None:
    record.add(HERE, {"a/b": FAST})
    found = record.read(file_of(here), here)
    assert found.record is None and found.problem == f"the record {file_of()} {problem}"
    assert found.obstacle("a/b") == f"{found.problem}; `aapt-fast verify` makes one"
    assert "torch's own code runs" in found.in_words()


def damaged(**changes: object) -> str:
    record.add(HERE, {"a/b": FAST})
    return json.dumps({**json.loads(file_of().read_text()), **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": 2},
        {"kernels": {"a/b": {"fault": None, "times_as_fast": {"x": -1}}}},
        {"kernels": {"a/b": {"fault": None, "times_as_fast": {"x": float("nan")}}}},
        {"kernels": {"a/b": {"fault": 3, "times_as_fast": {}}}},
        {"kernels": {"a/b": {"surprise": 1}}},
        {"kernels": []},
        {"identity": None},
    ],
    ids=lambda changes: str(changes)[:50],
)
def test_a_damaged_record_counts_as_none_and_is_replaced(changes: dict[str, object]) -> None:
    file_of().parent.mkdir(parents=True)
    file_of().write_text(damaged(**changes))
    found = record.read(file_of(), HERE)
    assert found.record is None and found.problem.startswith(f"the record {file_of()} is damaged (")
    assert set(record.add(HERE, {"c/d": FAST}).kernels) == {"c/d"}
    assert record.read(file_of(), HERE).record is not None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}', "\x00\xff"])
def test_a_file_that_is_no_record_is_damaged(text: str) -> None:
    file_of().parent.mkdir(parents=True)
    file_of().write_bytes(text.encode("latin-1"))
    assert "is damaged (" in record.read(file_of(), HERE).problem


def test_a_record_that_cannot_be_read_says_so() -> None:
    file_of().mkdir(parents=True)
    assert record.read(file_of(), HERE).problem == f"the record {file_of()} cannot be read (Is a directory)"


@pytest.mark.parametrize(
    ("error", "problem"),
    [(PermissionError(13, "Permission denied"), "cannot be read (Permission denied)"), (None, "there is no record of")],
)
def test_looking_for_a_record_never_stops_a_stream(
    error: OSError | None, problem: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(module: types.ModuleType) -> str:
        assert error is not None
        raise error

    monkeypatch.setattr(record, "name_and_capability", lambda device: (HERE.gpu, HERE.capability))
    monkeypatch.setattr(record, "driver_version", lambda: HERE.driver)
    monkeypatch.setattr(record, "fingerprint", refuse)
    if error is None:
        cache.write_text("a file in the place of the folder")
    else:
        record.add(HERE, {"a/b": FAST})
    record.look_up.cache_clear()
    found = record.look_up(torch.device("cuda"), types)
    assert found.record is None and problem in found.problem
    record.look_up.cache_clear()


def test_an_error_while_writing_leaves_the_old_record(monkeypatch: pytest.MonkeyPatch) -> None:
    before = record.add(HERE, {"a/b": FAST})

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        record.add(HERE, {"c/d": FAST})
    assert record.read(file_of(), HERE).record == before
    assert [path.name for path in file_of().parent.iterdir()] == [file_of().name]


@pytest.mark.parametrize("value", [None, "", "relative/folder"])
def test_the_folder_is_below_the_home_unless_the_variable_is_absolute(
    value: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME")
    if value is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert file_of() == tmp_path / ".cache/aapt_fast/verified/nvidia-h200-9.0.json"


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar 5\nGCC 12.2",
            "550.54.15",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build", "580.65.06"),
        (None, "CUDA 13000"),
    ],
)
def test_the_version_of_the_driver(
    text: str | None, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "DRIVER_FILE", tmp_path / "version")
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: 13000, raising=False)
    if text is not None:
        record.DRIVER_FILE.write_text(text)
    assert record.driver_version() == version


def test_the_identity_is_of_gpu_driver_and_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(record, "driver_version", lambda: "580.65.06")
    module = types.ModuleType("module")
    module.__file__ = str(tmp_path / "module.so")
    builds = []
    for content in (b"one build", b"another build"):
        Path(module.__file__).write_bytes(content)
        found = record.identity_of(torch.device("cuda"), module)
        assert replace(found, build=HERE.build) == HERE
        builds.append(found.build)
    assert builds[0] != builds[1]
