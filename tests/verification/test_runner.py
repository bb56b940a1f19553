# SPDX-License-Identifier: Apache-2.0
"""Whole runs in the emulation, with real processes: right, wrong and slow kernels, one that hangs, one that crashes."""

from __future__ import annotations

import json
import types
import warnings
from pathlib import Path

import pytest
import torch
from tests.verification.trials import GPU, TimesAsTold

import aapt_fast
from aapt_fast.ops import record
from aapt_fast.ops.kernels import KERNELS, Selection, forget_record
from aapt_fast.verification import runner
from aapt_fast.verification.cases import SUITES
from aapt_fast.verification.one_kernel import Finding, Job, examine
from aapt_fast.verification.runner import Place, in_own_process, run

TINY = {op: (suite.tiny,) for op, suite in SUITES.items()}
CLEAN, GATE, NOISE = "clean_frame/portable", "gate_residual_norm/portable", "philox_normal/portable"
WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")

FAULTY = """
def clean_frame_portable(*arguments):
    real.clean_frame_portable(*arguments)
    ctypes.memset(arguments[4][0], 0, 4)

def gate_residual_norm_portable(*arguments):
    os.abort()
"""


def found() -> record.Found:
    return record.read(record.path_of(GPU.gpu, GPU.capability), GPU)


def test_a_whole_run_keeps_faults_in_their_processes(planted, cache):
    lines = []
    report = run(Place("cpu", GPU, planted(FAULTY), compiled=False), [GATE, CLEAN], TINY, tell=lines.append)
    crashed, wrong = report.findings
    assert f"{CLEAN}, torch.bfloat16: 1 tokens: output 0: expected an error of at most" in wrong.fault
    assert "require_right" in wrong.details
    assert crashed.fault == f"SIGABRT ended its process, in {GATE}, torch.float32: 0 tokens"
    assert "Fatal Python error: Aborted" in crashed.details and "gate_residual_norm_portable" in crashed.details
    assert not report.passed and report.on() == [] and found().record == report.record
    assert len(lines) == 4 and lines[0].startswith(f"1/2 {GATE}") and crashed.fault in lines[1]


def test_a_kernel_that_hangs_is_ended_by_its_limit(planted):
    sleepy = "def philox_normal_portable(*arguments): time.sleep(600)"
    job = Job(NOISE, "cpu", TINY["philox_normal"], str(planted(sleepy)), compiled=False)
    for limit_s in (10, 60):
        finding = in_own_process(job, limit_s)
        if "the start of its process" not in finding.fault:  # which may take longer on a busy machine
            break
    assert finding.fault == f"it did not end within {limit_s} s, in {NOISE}, torch.float32: 1x1x1 numbers"
    assert "philox_normal_portable" in finding.details


@pytest.mark.parametrize(("times_of_kernel", "on"), [(0.5, True), (2.0, False)])
def test_the_clock_decides_which_right_kernel_is_on(times_of_kernel, on, module_file, cache):
    place = Place("cpu", GPU, module_file, compiled=False)

    def here(job: Job) -> Finding:
        return examine(job, lambda line: None, TimesAsTold(times_of_kernel))

    report = run(place, [CLEAN, NOISE], TINY, examine=here)
    assert report.passed and report.on() == ([CLEAN, NOISE] if on else [])
    assert set(report.off()) == set(KERNELS) - set(report.on())
    assert found().record == report.record


def right(job: Job) -> Finding:
    return Finding(job.kernel, 1.0, checks=3)


def test_an_interrupted_run_keeps_what_is_done_and_leaves_the_rest(cache):
    record.add(GPU, {NOISE: record.Verified(None, {"x": 2.0}), CLEAN: record.Verified("old")})

    def interrupted(job: Job) -> Finding:
        if job.kernel == GATE:
            raise KeyboardInterrupt
        return right(job)

    with pytest.raises(KeyboardInterrupt):
        run(Place("cpu", GPU), [CLEAN, GATE, NOISE], TINY, examine=interrupted)
    known = found().record
    assert known.kernels[CLEAN].fault is None and GATE not in known.kernels and known.obstacle(NOISE) is None
    assert [path.name for path in found().path.parent.iterdir()] == [found().path.name]


def test_a_folder_that_cannot_be_written_to_is_known_before_any_kernel_runs(cache):
    cache.write_text("a file in the way")

    def never(job: Job) -> Finding:
        raise AssertionError("no kernel runs")

    with pytest.raises(ValueError, match=r"which XDG_CACHE_HOME moves: expected a folder, .* is a file"):
        run(Place("cpu", GPU), [NOISE], TINY, examine=never)


def test_a_record_counts_in_the_process_that_has_written_it(cache, monkeypatch):
    device = torch.device("cuda")
    monkeypatch.setattr(record, "name_and_capability", lambda device: (GPU.gpu, GPU.capability))
    monkeypatch.setattr(record, "identity_of", lambda device, module: GPU)
    forget_record()
    assert record.look_up(device, pytest).record is None
    run(Place("cpu", GPU), [NOISE], TINY, examine=right)
    assert set(record.look_up(device, pytest).record.kernels) == {NOISE}
    forget_record()


# ---- bad input ----


@WITHOUT_GPU
def test_without_a_gpu_one_sentence_says_so():
    with pytest.raises(ValueError, match=r"this machine: expected a GPU, on which the kernels are to run, .* got none"):
        aapt_fast.verify()


@pytest.mark.parametrize("names", [["kv_write"], [], ["all"]])
def test_unknown_kernels_are_refused(names):
    with pytest.raises(
        ValueError, match=r"kernels: expected some of channel_concat/portable, .*, got (kv_write|none|all)"
    ):
        aapt_fast.verify(names)


def test_one_name_is_no_list():
    with pytest.raises(ValueError, match=f"kernels: expected a list of names, got {NOISE}"):
        aapt_fast.verify(NOISE)


def test_an_unknown_model_is_refused():
    with pytest.raises(ValueError, match=r"shapes: expected a preset \(aapt-8b, .*, got huge"):
        aapt_fast.verify(shapes="huge")


def test_a_gpu_that_no_kernel_is_compiled_for_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="this machine: expected a GPU and a build that kernels can run on, got "):
            aapt_fast.verify()
        with pytest.raises(ValueError, match="kernels: expected kernels that can run here, got kv_write/portable: "):
            aapt_fast.verify(["kv_write/portable"])


@pytest.mark.parametrize(
    ("capability", "hopper"), [((8, 9), False), ((9, 0), True), ((10, 0), False), ((10, 3), False), ((12, 1), False)]
)
def test_a_gpu_is_examined_though_only_ptx_fits_it(monkeypatch, capability, hopper):
    """Without machine code for 10.x, the driver compiles the PTX; kernels for Hopper alone have none."""
    module = types.ModuleType("built")
    module.build_info = lambda: {
        "cuda": True,
        "emulated": False,
        "cuda_version": "13.0.88",
        "cuda_archs": "80-real,90-real,120-real,80-virtual,90a-real",
    }
    for kernel in KERNELS.values():
        setattr(module, kernel.function, None)
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: 13000, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(Selection, "module", lambda self: module)
    refused = set(runner._obstacles(torch.device("cuda")))
    assert refused == (set() if hopper else {name for name in KERNELS if "sm90" in name})


def test_every_kernel_has_shapes_to_time() -> None:
    assert {kernel.op for kernel in KERNELS.values()} == set(TINY)


def test_the_program_writes_a_finding(module_file, tmp_path: Path, monkeypatch):
    from aapt_fast.verification import one_kernel

    job = {"kernel": NOISE, "device": "cpu", "shapes": [[3, 5, 7]], "module": str(module_file), "compiled": False}
    monkeypatch.setattr("sys.argv", ["one_kernel", json.dumps(job), str(tmp_path / "finding.json")])
    monkeypatch.setattr(one_kernel.faulthandler, "enable", lambda: None)
    monkeypatch.setattr(one_kernel.faulthandler, "register", lambda *arguments, **options: None)
    one_kernel.main()
    finding = Finding.from_json(json.loads((tmp_path / "finding.json").read_text()))
    assert finding.kernel == NOISE and finding.fault is None and finding.checks == 5
