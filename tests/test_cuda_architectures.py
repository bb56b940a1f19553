# SPDX-License-Identifier: Apache-2.0
"""The GPUs that the CMake files compile for: by default for each nvcc, and as a user sets them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
KNOWN = "75;80;86;87;88;89;90;100;110;103;120;121"  # by nvcc 13.0


@pytest.fixture(scope="module")
def cmake() -> str:
    found = shutil.which("cmake", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return found or pytest.skip("cmake is neither in this environment nor on PATH")


def words(result: subprocess.CompletedProcess[str]) -> str:
    return " ".join((result.stdout + result.stderr).split())


def call(cmake: str, folder: Path, function: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Call a function of AaptArchitectures.cmake without a compiler; it prints the variable it sets as [a;b]."""
    script = folder / "script.cmake"
    quoted = " ".join(f'"{argument}"' for argument in arguments)
    file = REPOSITORY / "cmake" / "AaptArchitectures.cmake"
    script.write_text(f'include("{file}")\n{function}(result {quoted})\nmessage("[${{result}}]")\n')
    return subprocess.run([cmake, "-P", script], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("nvcc", "machine_code"),
    [
        ("12.4.131", "80-real;90-real"),
        ("12.6.85", "80-real;90-real"),
        ("12.8.61", "80-real;90-real;120-real"),
        ("12.9.86", "80-real;90-real;120-real"),
        ("13.0.88", "80-real;90-real;120-real"),
        ("13.5.37", "80-real;90-real;120-real"),
    ],
)
def test_each_nvcc_compiles_for_the_gpus_that_it_knows(cmake, tmp_path, nvcc, machine_code):
    result = call(cmake, tmp_path, "aapt_default_architectures", nvcc)
    assert words(result) == f"[{machine_code};80-virtual]"


@pytest.mark.parametrize(
    ("setting", "meaning"),
    [
        ("", ""),
        ("90", "90-real;90-virtual"),
        ("80-real;120", "80-real;120-real;120-virtual"),
        ("103-virtual;103", "103-virtual;103-real"),
    ],
)
def test_a_user_names_architectures_as_cmake_does(cmake, tmp_path, setting, meaning):
    result = call(cmake, tmp_path, "aapt_expand_architectures", setting, KNOWN)
    assert words(result) == f"[{meaning}]"


@pytest.mark.parametrize(
    "nonsense", ["75", "85", "9.0", "sm_90", "90a", "native", "all", "90-ptx", "8", "90;91", "-real"]
)
def test_architectures_that_are_none_are_refused(cmake, tmp_path, nonsense):
    result = call(cmake, tmp_path, "aapt_expand_architectures", nonsense, KNOWN)
    got = nonsense.split(";")[-1]
    assert result.returncode != 0
    expected = "expected some of 80, 86, 87, 88, 89, 90, 100, 110, 103, 120, 121 with semicolons between them"
    assert f"CMAKE_CUDA_ARCHITECTURES: {expected}" in words(result) and f"got '{got}'." in words(result)


@pytest.mark.parametrize("by", ["option", "environment"])
def test_the_setting_reaches_the_build(cmake, tmp_path, by):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\n[ \"$1\" != --list-gpu-arch ] || printf 'compute_75\\ncompute_80\\ncompute_90\\n'\n")
    nvcc.chmod(0o755)
    command = [cmake, "-S", REPOSITORY, "-B", tmp_path / "build", "-DAAPT_CUDA=ON"]
    environment = {**os.environ, "CUDACXX": str(nvcc)}
    if by == "option":
        command.append("-DCMAKE_CUDA_ARCHITECTURES=120")
    else:
        environment["CUDAARCHS"] = "120"
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode != 0
    assert "CMAKE_CUDA_ARCHITECTURES: expected some of 80, 90 with semicolons" in words(result)
    assert "got '120'." in words(result)
