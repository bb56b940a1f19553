// SPDX-License-Identifier: Apache-2.0
// A CUDA status becomes a C++ exception, and so a Python one. A library never ends the process.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace aapt {

// Throws std::runtime_error naming the call, the error and its meaning, unless `status` is cudaSuccess.
inline void cuda_check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();  // reported here, so it must not show up again after the next launch
  throw std::runtime_error(std::string(call) + ": " + cudaGetErrorName(status) + ", " + cudaGetErrorString(status));
}

}  // namespace aapt
