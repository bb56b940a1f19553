// SPDX-License-Identifier: Apache-2.0
#include "common/device_guard.h"

#include <cudaTypedefs.h>

#include "common/cuda_check.h"
#include "common/driver_function.h"

namespace aapt {
namespace {

// True if this process has the context on the GPU that the runtime and torch share, or if the driver does not say.
bool is_in_use(int device) {
  static const auto state_of =
      find_driver_function<PFN_cuDevicePrimaryCtxGetState_v7000>("cuDevicePrimaryCtxGetState", 7000);
  unsigned flags = 0;
  int active = 0;
  return state_of == nullptr || state_of(device, &flags, &active) != CUDA_SUCCESS || active != 0;
}

}  // namespace

DeviceGuard::DeviceGuard(int device) : device_(device) {
  cuda_check(cudaGetDevice(&before_), "cudaGetDevice");
  cuda_check(cudaSetDevice(device), "cudaSetDevice");
}

DeviceGuard::~DeviceGuard() {
  if (before_ != device_ && is_in_use(before_)) (void)cudaSetDevice(before_);
}

}  // namespace aapt
