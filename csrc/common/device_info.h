// SPDX-License-Identifier: Apache-2.0
// Facts of the CUDA runtime about the GPUs. Implemented once with CUDA and once without.
#pragma once

#include <cstdint>
#include <string>

namespace aapt {

struct DeviceInfo {
  std::string name;
  int compute_capability_major;
  int compute_capability_minor;
  std::int64_t total_memory;  // bytes
  int multiprocessors;
  int driver_version;   // newest CUDA the driver supports, 1000 * major + 10 * minor
  int runtime_version;  // CUDA runtime linked into this module, same encoding
};

// Number of usable GPUs; 0 without a driver. Throws std::runtime_error when a driver is there but fails.
int device_count();

// Throws std::out_of_range unless 0 <= device < device_count().
DeviceInfo device_info(int device);

// Throws Unsupported unless the GPU has at least this compute capability. The emulation has every one.
void require_capability(int device, int major, int minor);

// Throws Unsupported unless the GPU runs machine code for sm_90a: compute capability 9.0, neither older nor newer.
void require_hopper(int device);

}  // namespace aapt
