// SPDX-License-Identifier: Apache-2.0
// The build without CUDA sees no GPU.
#include <stdexcept>

#include "common/device_info.h"

namespace aapt {

int device_count() { return 0; }

DeviceInfo device_info(int device) {
  throw std::out_of_range("device: expected a build of aapt_fast with CUDA, got one without it (device " +
                          std::to_string(device) + ")");
}

void require_hopper(int) {}
void require_capability(int, int, int) {}  // only emulated kernels ask, and they run everywhere

}  // namespace aapt
