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

// Makes a GPU the current one and goes back to the one before.
class DeviceGuard {
 public:
  // Sets the device even where it is the current one already: that is what gives a fresh thread its context.
  explicit DeviceGuard(int device) : device_(device) {
    cuda_check(cudaGetDevice(&before_), "cudaGetDevice");
    cuda_check(cudaSetDevice(device), "cudaSetDevice");
  }
  ~DeviceGuard() {
    if (before_ != device_) (void)cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int device_;
  int before_ = 0;
};

}  // namespace aapt
