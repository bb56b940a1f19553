# SPDX-License-Identifier: Apache-2.0
"""Which machine code counts as verified, and the script that records a GPU run."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import replace
from importlib import resources
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from aapt_fast.ops import verified
from aapt_fast.ops.kernels import KERNELS
from aapt_fast.ops.machine_code import Cubin, Function, MachineCode, MachineCodeError, Ptx, kernel_hash
from aapt_fast.ops.verified import (
    Entry,
    entry_of,
    is_verified,
    read_entries,
    running_architecture,
    runs_ptx,
    verification,
)

KERNEL = "paged_attention/portable"
GPU = torch.device("cuda", 0)
FACTS = {
    "kernel": KERNEL,
    "architecture": "sm_90",
    "hash": "0" * 64,
    "gpu": "NVIDIA H200",
    "date": "2026-11-20",
    "commit": "0123abc",
    "driver": "580.1",
    "torch": "2.13.0",
}


# ---- which machine code runs where ----


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((7, 5), None),
        ((8, 0), "sm_80"),
        ((8, 6), "sm_86"),
        ((8, 9), "sm_86"),
        ((9, 0), "sm_90a"),
        ((9, 1), "sm_90"),
        ((10, 0), None),
        ((12, 0), None),
    ],
)
def test_a_gpu_runs_code_of_its_major_version(capability, expected):
    assert running_architecture(("sm_80", "sm_86", "sm_90", "sm_90a"), capability) == expected


def test_ptx_is_for_newer_gpus():
    assert runs_ptx("compute_80", (8, 0)) and runs_ptx("compute_80", (12, 1))
    assert not runs_ptx("compute_80", (7, 5))
    assert runs_ptx("compute_90a", (9, 0)) and not runs_ptx("compute_90a", (10, 0))


# ---- which of it is verified: a module with made-up code, a GPU of any capability ----


def function(code: bytes) -> Function:
    return Function("_ZN4aapt24paged_attention_portableIiEEvv", code, (), 32, 0)


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A module with code for sm_80 and sm_90, a GPU, and a list of entries; all three can be changed."""
    module = ModuleType("made_up")
    info = {"cuda": True, "emulated": False}
    module.__dict__["build_info"] = lambda: info
    cubins = tuple(Cubin(name, b"", (function(name.encode()),)) for name in ("sm_80", "sm_90"))
    code = MachineCode(cubins, (Ptx("compute_80", None),))
    state = SimpleNamespace(module=module, info=info, code=code, capability=(9, 0), entries=())
    for owner in (verified, importlib.import_module("aapt_fast.ops.machine_code")):
        monkeypatch.setattr(owner, "machine_code", lambda _: state.code)
    monkeypatch.setattr(verified, "entries", lambda: state.entries)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: state.capability)
    verification.cache_clear()
    yield state
    verification.cache_clear()


def entry(setting: SimpleNamespace, architecture: str) -> Entry:
    digest = kernel_hash(KERNEL, setting.module, architecture)
    return Entry(**{**FACTS, "architecture": architecture, "hash": digest})


def test_the_same_code_on_the_same_kind_of_gpu_is_verified(setting):
    setting.entries = (entry(setting, "sm_90"),)
    assert is_verified(KERNEL, setting.module, GPU)
    found = verification(KERNEL, setting.module, GPU)
    assert found.why == "verified on NVIDIA H200, 2026-11-20"
    assert (found.architecture, found.hash) == ("sm_90", setting.entries[0].hash)


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9)])
def test_code_for_8_0_verified_there_is_verified_on_every_8_x(setting, capability):
    setting.entries, setting.capability = (entry(setting, "sm_80"),), capability
    assert is_verified(KERNEL, setting.module, GPU)


@pytest.mark.parametrize(
    "changes",
    [{"hash": "0" * 64}, {"kernel": "paged_attention/other"}, {"architecture": "sm_80"}],
    ids=["other code", "other kernel", "other architecture"],
)
def test_anything_else_is_not_verified(setting, changes):
    setting.entries = (replace(entry(setting, "sm_90"), **changes),)
    found = verification(KERNEL, setting.module, GPU)
    assert (found.verified, found.why) == (False, "no GPU has verified this machine code")
    assert not is_verified(KERNEL, setting.module, GPU)


@pytest.mark.parametrize(
    ("change", "device", "why"),
    [
        ({}, None, "no GPU here"),
        ({}, torch.device("cpu"), "no GPU here"),
        ({"capability": (10, 0)}, GPU, "compiled by the driver from PTX"),
        ({"capability": (7, 5)}, GPU, "no machine code for a GPU of capability 7.5"),
        ({"info": {"cuda": True, "emulated": True}}, GPU, "the kernels are emulated on the CPU"),
        ({"info": {"cuda": False, "emulated": False}}, GPU, "the module was built without CUDA"),
    ],
)
def test_reasons_why_not(setting, change, device, why):
    setting.entries = (entry(setting, "sm_80"), entry(setting, "sm_90"))
    setting.info.update(change.pop("info", {}))
    vars(setting).update(change)
    assert verification(KERNEL, setting.module, device) == verified.Verification(False, why)


def test_unreadable_machine_code_is_a_reason(setting, monkeypatch):
    def unreadable(_: ModuleType) -> MachineCode:
        raise MachineCodeError("machine code for sm_80: expected it uncompressed, got it compressed")

    monkeypatch.setattr(verified, "machine_code", unreadable)
    found = verification(KERNEL, setting.module, GPU)
    assert not found.verified and "cannot be read: machine code for sm_80: expected it uncompressed" in found.why


# ---- verified.json ----


def test_the_installed_file_is_well_formed():
    with resources.as_file(resources.files("aapt_fast.ops") / "verified.json") as file:
        found = read_entries(file)
    assert {found_entry.kernel for found_entry in found} <= set(KERNELS)
    keys = [(found_entry.kernel, found_entry.architecture) for found_entry in found]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("document", [[], {"entries": []}, {"schema": 2, "entries": []}])
def test_another_schema_is_refused(tmp_path, document):
    (tmp_path / "verified.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"verified\.json: expected schema 1, got"):
        read_entries(tmp_path / "verified.json")


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({**FACTS, "hash": "0" * 63}, "x: hash: expected 64 hexadecimal digits, got 000"),
        ({**FACTS, "architecture": "90"}, "x: architecture: expected a name like sm_90a, got 90"),
        ({**FACTS, "date": "today"}, "x: date: expected YYYY-MM-DD, got today"),
        ({**FACTS, "gpu": " "}, "x: gpu: expected text, got ' '"),
        ({**FACTS, "driver": 580}, "x: driver: expected text, got 580"),
        ({**FACTS, "more": "x"}, "x: expected entries with kernel, architecture"),
        ({"kernel": KERNEL}, "x: expected entries with kernel, architecture"),
        ([], "x: expected entries with kernel, architecture"),
    ],
)
def test_malformed_entries_are_refused(facts, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        entry_of(facts, "x")


# ---- bench/record_verified.py ----

SCRIPT = Path(__file__).parents[2] / "bench" / "record_verified.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("record_verified", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def result(*kernels: dict[str, object], **changes: object) -> dict[str, object]:
    run = {name: FACTS[name] for name in ("gpu", "driver", "torch", "commit", "date")}
    default = ({"kernel": KERNEL, "architecture": "sm_90", "hash": "a" * 64, "passed": True},)
    return {**run, "bench": {"other": "facts"}, "verified": list(kernels or default), **changes}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A verified.json with two entries: this kernel for sm_80 and for sm_90."""
    path = tmp_path / "verified.json"
    path.write_text(json.dumps({"schema": 1, "entries": [{**FACTS, "architecture": "sm_80"}, FACTS]}))
    return path


def test_a_run_replaces_older_entries_of_the_same_code_path(script, file, capsys):
    (file.parent / "result.json").write_text(json.dumps(result(gpu="NVIDIA H100", date="2026-12-01")))
    assert script.main([str(file.parent / "result.json"), "--file", str(file)]) == 0
    of_80, of_90 = read_entries(file)
    assert of_80 == Entry(**{**FACTS, "architecture": "sm_80"})
    assert of_90 == Entry(**{**FACTS, "hash": "a" * 64, "gpu": "NVIDIA H100", "date": "2026-12-01"})
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [added["gpu"] for added in printed["added"]] == ["NVIDIA H100"]
    assert sorted(path.name for path in file.parent.iterdir()) == ["result.json", "verified.json"]


def test_a_run_may_describe_its_gpu_and_give_the_time(script, file):
    gpu = {"name": "NVIDIA H200", "capability": "9.0"}
    more = {**KERNEL_RESULT, "tests": ["tests/kernels/test_paged_attention.py"]}
    script.record(result(more, gpu=gpu, date="2026-12-01T10:11:12+00:00"), file)
    assert read_entries(file)[1] == Entry(**{**FACTS, "hash": "a" * 64, "date": "2026-12-01"})


def test_only_leaves_a_failed_kernel_out(script, file):
    failed = {**KERNEL_RESULT, "kernel": "other/failed", "passed": False}
    assert [added.kernel for added in script.record(result(failed, KERNEL_RESULT), file, [KERNEL])] == [KERNEL]
    with pytest.raises(ValueError, match="only: expected kernels of the run, paged_attention/portable, got x/y"):
        script.record(result(), file, ["x/y"])


KERNEL_RESULT = {"kernel": KERNEL, "architecture": "sm_90", "hash": "a" * 64, "passed": True}
REFUSED = {
    "failed": (result({**KERNEL_RESULT, "passed": False}), "verified[0]: passed: expected true, got false"),
    "passed is no truth": (result({**KERNEL_RESULT, "passed": 1}), "verified[0]: passed: expected true, got 1"),
    "one of two failed": (result(KERNEL_RESULT, {**KERNEL_RESULT, "passed": False}), "verified[1]: passed: expected"),
    "twice": (result(KERNEL_RESULT, KERNEL_RESULT), "verified: expected each kernel and architecture once, got paged"),
    "unknown kernel": (
        result({**KERNEL_RESULT, "kernel": "x/y"}),
        "verified[0]: kernel: expected ",
    ),
    "hash": (result({**KERNEL_RESULT, "hash": "A" * 64}), "verified[0]: hash: expected 64 hexadecimal digits, got AAA"),
    "fact": (result({"kernel": KERNEL}), "verified[0]: expected kernel, architecture, hash, passed, got {'kernel'"),
    "no kernels": (result(verified=[]), "verified: expected a list with at least one kernel, got []"),
    "not a list": (result(verified={"a": 1}), "verified: expected a list with at least one kernel, got {'a'"),
    "no gpu": ({"verified": []}, "result: expected gpu, driver, torch, commit, date and verified, got none of gpu"),
    "gpu": (result(gpu=None), "verified[0]: gpu: expected text, got None"),
    "rehearsal": (result(rehearsal=True), "result: expected a run on a GPU, got a rehearsal"),
    "not an object": ([], "result: expected a JSON object, got list"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_failed_or_malformed_runs_change_nothing(script, file, name):
    document, message = REFUSED[name]
    before = file.read_bytes()
    with pytest.raises(ValueError, match=re.escape(message)):
        script.record(document, file)
    assert file.read_bytes() == before and list(file.parent.iterdir()) == [file]


def test_an_interrupted_write_changes_nothing(script, file, monkeypatch):
    before = file.read_bytes()

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        script.record(result(), file)
    assert file.read_bytes() == before and list(file.parent.iterdir()) == [file]
