// SPDX-License-Identifier: Apache-2.0
// Functions of the driver, looked up while the program runs: nothing links to libcuda.
#pragma once

#include <cuda_runtime_api.h>

namespace aapt {

// The function in the form of a CUDA version (12000 is 12.0), or null where the driver does not have it.
template <class Function>
Function find_driver_function(const char* name, unsigned version) noexcept {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  const cudaError_t status = cudaGetDriverEntryPointByVersion(name, &function, version, cudaEnableDefault, &found);
#else
  (void)version;  // that of the runtime counts
  const cudaError_t status = cudaGetDriverEntryPoint(name, &function, cudaEnableDefault, &found);
#endif
  if (status != cudaSuccess) (void)cudaGetLastError();
  return status == cudaSuccess && found == cudaDriverEntryPointSuccess ? reinterpret_cast<Function>(function) : nullptr;
}

}  // namespace aapt
