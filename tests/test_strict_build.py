# SPDX-License-Identifier: Apache-2.0
"""AAPT_STRICT: what makes a kernel slow without making it wrong fails to compile. Each is planted once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

# Products of a warpgroup whose accumulator is written while they run: ptxas lets them wait for each other.
WGMMA = """
#include <cstdint>
__global__ void __launch_bounds__(128) planted(float* out, std::uint64_t a, std::uint64_t b, int n) {
  float c[4] = {};
  for (int i = 0; i < n; ++i) {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, %4, %5, 1, 1, 1, 0, 0;"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "l"(a), "l"(b));
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    TOUCH
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  }
  out[threadIdx.x] = c[0] + c[1] + c[2] + c[3];
}
"""

# target -> (architectures, source)
PLANTED = {
    "spill": (
        "80-real",
        """
__global__ void __launch_bounds__(1024, 1) planted(float* x) {
  float v[128];
#pragma unroll
  for (int i = 0; i < 128; ++i) v[i] = x[i * 1024 + threadIdx.x];
#pragma unroll
  for (int i = 0; i < 1024; ++i) v[i % 128] = v[i % 128] * v[(i * 37 + i / 128 + 1) % 128] + 1.f;
#pragma unroll
  for (int i = 0; i < 128; ++i) x[i * 1024 + threadIdx.x] = v[i];
}
""",
    ),
    "local_array": (
        "80-real",
        """
__global__ void planted(float* x, int n) {
  float v[64];
  for (int i = 0; i < 64; ++i) v[i] = x[i];
  for (int i = 0; i < n; ++i) v[n * i % 64] += v[i % 64];
  x[threadIdx.x] = v[n];
}
""",
    ),
    "serialised_wgmma": ("90a-real", WGMMA.replace("TOUCH", "c[0] += 1;")),
    "ignored_setmaxnreg": (
        "90a-real",
        """
__global__ void planted(float* x) {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
  x[threadIdx.x] += 1;
}
""",
    ),
    "faultless": (
        "80-real 90-real 80-virtual",
        "__global__ void planted(float* x) { x[threadIdx.x] *= 2; }",
    ),
    "faultless_wgmma": ("90a-real", WGMMA.replace("TOUCH", "")),
}

MESSAGES = {
    "spill": "Registers are spilled to local memory",
    "local_array": "Local memory used for function",
    "serialised_wgmma": "wgmma.mma_async instructions are serialized",
    "ignored_setmaxnreg": "'setmaxnreg' ignored",
}


def tool(name: str) -> str:
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return found or pytest.skip(f"{name} is neither in this environment nor on PATH")


@pytest.fixture(scope="module")
def builds(nvcc, tmp_path_factory) -> dict[str, Path]:
    """Build folders of a project with the planted kernels, one target each: {"ON": strict, "OFF": as for users}."""
    root = tmp_path_factory.mktemp("planted")
    lines = [
        "cmake_minimum_required(VERSION 3.25)\nproject(planted LANGUAGES CXX)\nset(CMAKE_BUILD_TYPE Release)",
        f'list(APPEND CMAKE_MODULE_PATH "{REPOSITORY}/cmake")\ninclude(AaptCuda)\ninclude(AaptKernels)',
        "add_library(user MODULE user.cpp)",
    ]
    (root / "user.cpp").write_text("")
    for name, (architectures, source) in PLANTED.items():
        (root / f"{name}.cu").write_text(source)
        lines.append(f"aapt_kernels({name} TARGET user ARCHITECTURES {architectures} SOURCES {name}.cu)")
    (root / "CMakeLists.txt").write_text("\n".join(lines))
    ninja = f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"
    for strict in ("ON", "OFF"):
        options = ["-G", "Ninja", ninja, f"-DAAPT_STRICT={strict}", f"-DCMAKE_CUDA_COMPILER={nvcc}"]
        command = [tool("cmake"), "-S", root, "-B", root / strict, *options]
        subprocess.run(command, check=True, capture_output=True)
    return {strict: root / strict for strict in ("ON", "OFF")}


def build(folder: Path, target: str) -> subprocess.CompletedProcess[str]:
    command = [tool("cmake"), "--build", str(folder), "--target", target]
    result = subprocess.run(command, capture_output=True, text=True)
    result.stdout += result.stderr
    return result


@pytest.mark.parametrize("target", MESSAGES)
def test_a_slow_kernel_does_not_compile(builds, target):
    result = build(builds["ON"], target)
    assert result.returncode != 0 and MESSAGES[target] in result.stdout, result.stdout
    assert not list(builds["ON"].glob(f"CMakeFiles/{target}.dir/**/*.o"))
    assert build(builds["ON"], target).returncode != 0  # not the second time either


@pytest.mark.parametrize("target", ["faultless", "faultless_wgmma"])
def test_a_faultless_kernel_compiles(builds, target):
    result = build(builds["ON"], target)
    assert result.returncode == 0, result.stdout


def test_a_user_may_build_a_slow_kernel(builds):
    result = build(builds["OFF"], "serialised_wgmma")
    assert result.returncode == 0 and MESSAGES["serialised_wgmma"] in result.stdout, result.stdout


def test_make_builds_strictly():
    command = [tool("make"), "--always-make", "--dry-run", ".venv/.installed-video,test"]
    planned = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    (install,) = [line for line in planned.splitlines() if "--editable" in line]
    assert "cmake.define.AAPT_STRICT=ON" in install
