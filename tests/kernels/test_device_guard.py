# SPDX-License-Identifier: Apache-2.0
"""The current GPU around launches and tensor maps, with a CUDA runtime and a driver that only take notes."""

from __future__ import annotations

import json
import shlex
import subprocess

from aapt_fast.testing.planting import CSRC
from aapt_fast.testing.targets import EMULATED_BUILD

PROGRAM = """
#include <cudaTypedefs.h>

#include <cstdio>
#include <string>
#include <thread>

#include "common/cuda_check.h"
#include "common/tensor_map.h"

thread_local int current = 0;
thread_local bool has_context = false;
thread_local std::string calls;

CUresult encode(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t* size, const cuuint64_t* stride,
                const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  for (int i = 0; i < 3; ++i) calls += " " + std::to_string(size[i]) + (i < 2 ? "/" + std::to_string(stride[i]) : "");
  calls += " on " + std::to_string(current) + ";";
  return has_context ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

extern "C" {
cudaError_t cudaGetDevice(int* device) { return *device = current, cudaSuccess; }
cudaError_t cudaSetDevice(int device) {
  current = device;
  has_context = true;
  calls += " set " + std::to_string(device) + ";";
  return cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorName(cudaError_t) { return ""; }
const char* cudaGetErrorString(cudaError_t) { return ""; }
cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* found) {
  *function = reinterpret_cast<void*>(&encode);
  *found = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
}

void in_a_fresh_thread(const char* name, void (*function)()) {
  std::thread([=] {
    calls.clear();
    function();
    std::printf("%s:%s then %d\\n", name, calls.c_str(), current);
  }).join();
}

aapt::Tensor tensor() { return {nullptr, aapt::Dtype::kFloat32, {2, 1, 8}, {16, 3, 1}}; }

int main() {
  in_a_fresh_thread("guard of the current GPU", [] { const aapt::DeviceGuard guard(0); });
  in_a_fresh_thread("guard of another one", [] { const aapt::DeviceGuard guard(1); });
  in_a_fresh_thread("map", [] { aapt::make_tensor_map("x", tensor(), {1, 1, 8}, aapt::Swizzle::kNone, 0); });
  in_a_fresh_thread("map elsewhere", [] { aapt::make_tensor_map("x", tensor(), {1, 1, 8}, aapt::Swizzle::kNone, 2); });
}
"""


def test_a_fresh_thread_has_a_context_and_keeps_its_gpu(tmp_path):
    (tmp_path / "main.cpp").write_text(PROGRAM)
    entries = json.loads((EMULATED_BUILD / "compile_commands.json").read_text())
    command = next(
        shlex.split(e["command"]) for e in entries if e["file"].endswith("channel_concat/instantiations/bf16.cu")
    )
    includes = [part for i, flag in enumerate(command) if flag == "-isystem" for part in command[i : i + 2]]
    sources = [
        tmp_path / "main.cpp",
        *(CSRC / "common" / name for name in ("tensor_map_cuda.cu", "tensor_map.cpp", "tensor.cpp")),
    ]
    program = tmp_path / "program"
    build = [
        command[0],
        "-std=c++17",
        f"-I{CSRC}",
        *includes,
        "-pthread",
        "-x",
        "c++",
        *map(str, sources),
        "-o",
        str(program),
    ]
    subprocess.run(build, check=True)
    output = subprocess.run([program], check=True, capture_output=True, text=True).stdout.splitlines()
    # Sizes and strides in bytes, the dense dimension first: 8 floats are 32 bytes, the natural stride of the lone row.
    assert output == [
        "guard of the current GPU: set 0; then 0",
        "guard of another one: set 1; set 0; then 0",
        "map: set 0; 8/32 1/64 2 on 0; then 0",
        "map elsewhere: set 2; 8/32 1/64 2 on 2; set 0; then 0",
    ]
