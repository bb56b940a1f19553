// SPDX-License-Identifier: Apache-2.0
#include "common/launch_cuda.h"

#include <cuda_runtime_api.h>

#include "common/cuda_check.h"
#include "common/device_guard.h"

namespace aapt {

void launch_kernel(const void* kernel, const Launch& how, const void* params) {
  const DeviceGuard guard(how.stream.device);
  cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(how.shared_bytes)),
             "cudaFuncSetAttribute");
  cudaLaunchAttribute attributes[2] = {};
  unsigned used = 0;
  if (how.cluster > 1) {
    attributes[used].id = cudaLaunchAttributeClusterDimension;
    attributes[used++].val.clusterDim = {how.cluster, 1, 1};
  }
  if (how.early) {
    attributes[used].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[used++].val.programmaticStreamSerializationAllowed = 1;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(how.grid.x, how.grid.y, how.grid.z);
  config.blockDim = dim3(how.threads);
  config.dynamicSmemBytes = how.shared_bytes;
  config.stream = reinterpret_cast<cudaStream_t>(how.stream.handle);
  config.attrs = attributes;
  config.numAttrs = used;
  void* arguments[] = {const_cast<void*>(params)};
  cuda_check(cudaLaunchKernelExC(&config, kernel, arguments), "cudaLaunchKernelExC");
}

}  // namespace aapt
