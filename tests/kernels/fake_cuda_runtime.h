// SPDX-License-Identifier: Apache-2.0
// A CUDA runtime for tests without a GPU: three GPUs that keep a diary instead of computing. It stands in for the
// functions that the host code calls and models their contexts as CUDA 12 and later do: the runtime makes one, for the
// whole process, on each GPU that a thread sets.
#pragma once

#include <cuda_runtime_api.h>

#include <string>
#include <vector>

namespace fake {

constexpr int kGpus = 3;

// Calls that need a context or make one, in their order, such as "context on 1", "launch on 1".
extern std::vector<std::string> diary;

// Makes the next call of a function of the runtime, such as "cudaLaunchKernelExC", return an error.
void fail(const std::string& function, cudaError_t error);

// Takes a function away from the driver, such as "cuTensorMapEncodeTiled", as an older one does not have it.
void forget(const std::string& function);

}  // namespace fake
