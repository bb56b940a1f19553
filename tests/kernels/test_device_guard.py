# SPDX-License-Identifier: Apache-2.0
"""The current GPU around launches and tensor maps, with a CUDA runtime and a driver that only keep a diary.

device_guard.cpp holds the scenarios, fake_cuda_runtime.cpp the runtime.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from aapt_fast.testing.planting import CSRC
from aapt_fast.testing.targets import EMULATED_BUILD

HERE = Path(__file__).parent
HOST_CODE = ("device_guard", "device_info_cuda", "launch_cuda", "tensor", "tensor_map", "tensor_map_cuda")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenarios, compiled with the compiler and the CUDA headers of the emulated build."""
    entries = json.loads((EMULATED_BUILD / "compile_commands.json").read_text())
    command = next(
        shlex.split(e["command"]) for e in entries if e["file"].endswith("channel_concat/instantiations/bf16.cu")
    )
    headers = [part for i, flag in enumerate(command) if flag == "-isystem" for part in command[i : i + 2]]
    sources = [HERE / "device_guard.cpp", HERE / "fake_cuda_runtime.cpp"]
    sources += [CSRC / "common" / f"{name}.cpp" for name in HOST_CODE]
    program = tmp_path_factory.mktemp("device_guard") / "program"
    options = ["-std=c++17", f"-I{CSRC}", *headers, "-pthread"]
    subprocess.run([command[0], *options, *map(str, sources), "-o", str(program)], check=True)
    return program


def diary(program: Path, scenario: str) -> list[str]:
    """Run a scenario in a fresh thread of a fresh process."""
    return subprocess.run([program, scenario], check=True, capture_output=True, text=True).stdout.splitlines()


def launched(device: int, cluster: int = 2, early: str = "") -> list[str]:
    how = f"kernel 11 with 5, grid 4x3x2, 128 threads, cluster {cluster}, stream 77{early}"
    return [f"attribute 1000 on {device}", f"launch of {how} on {device}"]


def test_a_fresh_thread_launches_on_the_first_gpu(program):
    assert diary(program, "launch on the first GPU") == ["context on 0", *launched(0), "current GPU 0"]


def test_a_launch_makes_no_context_on_a_gpu_that_is_not_in_use(program):
    # going back to GPU 0 would make one there
    expected = ["context on 1", *launched(1), "current GPU 1"]
    assert diary(program, "launch on a GPU while the first one is unused") == expected


@pytest.mark.parametrize("while_", ["on a GPU while another one is current", "where the driver does not tell contexts"])
def test_a_launch_goes_to_the_gpu_of_its_stream_and_comes_back(program, while_):
    expected = ["context on 2", "context on 1", *launched(1), "current GPU 2"]
    assert diary(program, f"launch {while_}") == expected


@pytest.mark.parametrize(("scenario", "cluster"), [("", 1), (", in clusters", 2)])
def test_a_kernel_that_may_begin_early_is_launched_so(program, scenario, cluster):
    expected = ["context on 1", *launched(1, cluster, ", early"), "current GPU 1"]
    assert diary(program, f"launch that may begin early{scenario}") == expected


def test_a_launch_that_fails_names_the_error_and_comes_back(program):
    error = "cudaSetDevice: cudaErrorInvalidDevice, its meaning"
    assert diary(program, "launch on a GPU that is not there") == ["context on 2", f"error: {error}", "current GPU 2"]
    error = "cudaFuncSetAttribute: cudaErrorInvalidValue, its meaning"
    expected = ["context on 2", "context on 1", launched(1)[0], f"error: {error}", "current GPU 2"]
    assert diary(program, "launch with too much shared memory") == expected


def test_an_error_is_not_seen_by_later_launches(program):
    error = "cudaLaunchKernelExC: cudaErrorLaunchOutOfResources, its meaning"
    expected = ["context on 2", "context on 1", *launched(1), error, "no error", *launched(1), "current GPU 2"]
    assert diary(program, "launch that fails, and one after it") == expected


def test_a_map_is_made_on_its_gpu(program):
    # Sizes and strides in bytes, the dense dimension first: 8 floats are 32 bytes, the natural stride of the lone row.
    made = "map 8/32 1/64 2"
    assert diary(program, "map") == ["context on 0", f"{made} on 0", "current GPU 0"]
    expected = ["context on 0", "context on 2", f"{made} on 2", "current GPU 0"]
    assert diary(program, "map on another GPU") == expected


@pytest.mark.parametrize(
    ("scenario", "stride"),
    [("of an expanded tensor", 0), ("of rows that overlap backwards", -64), ("with rows far apart", 2**40)],
)
def test_a_stride_that_the_copy_engine_does_not_take_is_unsupported(program, scenario, stride):
    refusal = f"x, stride of dimension 0: expected a positive multiple of 16 bytes below 2^40, got {stride}"
    assert diary(program, f"map {scenario}") == [f"Unsupported: {refusal}", "current GPU 0"]


def test_the_longest_stride_is_taken(program):
    expected = ["context on 0", f"map 8/32 1/{2**40 - 16} 2 on 0", "current GPU 0"]
    assert diary(program, "map with rows almost that far apart") == expected


def test_a_map_needs_a_driver_that_makes_it(program):
    error = "cuTensorMapEncodeTiled: expected a driver for CUDA 12.0 or later, got an older one"
    expected = ["context on 1", "context on 2", f"error: {error}", "current GPU 1"]
    assert diary(program, "map by an old driver") == expected


def test_questions_make_no_context(program):
    assert diary(program, "questions about a GPU") == ["current GPU 0"]
