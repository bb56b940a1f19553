// SPDX-License-Identifier: Apache-2.0
#include "common/device_info.h"

#include <stdexcept>

#include "common/cuda_check.h"
#include "common/tensor.h"

namespace aapt {
namespace {

// 0 without a driver
int driver_version() {
  int version = 0;
  cuda_check(cudaDriverGetVersion(&version), "cudaDriverGetVersion");
  return version;
}

}  // namespace

int device_count() {
  // Asked first: a missing driver and one older than this runtime give the same status below.
  if (driver_version() == 0) return 0;
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaErrorNoDevice) {
    (void)cudaGetLastError();
    return 0;
  }
  cuda_check(status, "cudaGetDeviceCount");
  return count;
}

DeviceInfo device_info(int device) {
  const int count = device_count();
  if (device < 0 || device >= count) {
    throw std::out_of_range("device: expected 0 <= device < " + std::to_string(count) + ", the number of GPUs, got " +
                            std::to_string(device));
  }
  // Properties only: asking for the free memory would create a context, which takes seconds and memory.
  cudaDeviceProp properties;
  cuda_check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  DeviceInfo info;
  info.name = properties.name;
  info.compute_capability_major = properties.major;
  info.compute_capability_minor = properties.minor;
  info.total_memory = static_cast<std::int64_t>(properties.totalGlobalMem);
  info.multiprocessors = properties.multiProcessorCount;
  info.driver_version = driver_version();
  cuda_check(cudaRuntimeGetVersion(&info.runtime_version), "cudaRuntimeGetVersion");
  return info;
}

namespace {

struct Capability {
  int major = 0, minor = 0;
  std::string text() const { return std::to_string(major) + "." + std::to_string(minor); }
};

Capability capability_of(int device) {
  Capability has;
  cuda_check(cudaDeviceGetAttribute(&has.major, cudaDevAttrComputeCapabilityMajor, device), "cudaDeviceGetAttribute");
  cuda_check(cudaDeviceGetAttribute(&has.minor, cudaDevAttrComputeCapabilityMinor, device), "cudaDeviceGetAttribute");
  return has;
}

}  // namespace

void require_capability(int device, int major, int minor) {
  const Capability has = capability_of(device), least = {major, minor};
  require_supported(has.major > major || (has.major == major && has.minor >= minor), "device",
                    "compute capability " + least.text() + " or newer for this kernel", has.text());
}

void require_hopper(int device) {
  const Capability has = capability_of(device);
  require_supported(has.major == 9 && has.minor == 0, "device", "compute capability 9.0 for this kernel", has.text());
}

}  // namespace aapt
