// SPDX-License-Identifier: Apache-2.0
#include "fake_cuda_runtime.h"

#include <cudaTypedefs.h>

#include <array>
#include <cstdint>
#include <map>
#include <set>

namespace fake {

std::vector<std::string> diary;

namespace {

thread_local int current = 0;               // what cudaGetDevice tells
thread_local bool thread_is_bound = false;  // to the context of the current GPU
std::array<bool, kGpus> has_context = {};
std::map<std::string, cudaError_t> errors;  // of the next call of a function
std::set<std::string> forgotten;
cudaError_t last_error = cudaSuccess;

cudaError_t returned(cudaError_t status) {
  if (status != cudaSuccess) last_error = status;
  return status;
}

cudaError_t result_of(const char* function) {
  const auto planted = errors.find(function);
  if (planted == errors.end()) return cudaSuccess;
  const cudaError_t error = planted->second;
  errors.erase(planted);
  return returned(error);
}

void note(const std::string& event) { diary.push_back(event + " on " + std::to_string(current)); }

CUresult primary_context_state(CUdevice device, unsigned*, int* active) {
  *active = has_context[device];
  return CUDA_SUCCESS;
}

CUresult encode(CUtensorMap*, CUtensorMapDataType, cuuint32_t rank, void*, const cuuint64_t* size,
                const cuuint64_t* stride, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  if (!thread_is_bound) return CUDA_ERROR_INVALID_CONTEXT;
  std::string event = "map";
  for (cuuint32_t i = 0; i < rank; ++i) {
    event += " " + std::to_string(size[i]);
    if (i + 1 < rank) event += "/" + std::to_string(stride[i]);
  }
  note(event);
  return CUDA_SUCCESS;
}

cudaError_t entry_point(const std::string& name, void** function, cudaDriverEntryPointQueryResult* found) {
  *function = nullptr;
  if (name == "cuTensorMapEncodeTiled") *function = reinterpret_cast<void*>(&encode);
  if (name == "cuDevicePrimaryCtxGetState") *function = reinterpret_cast<void*>(&primary_context_state);
  if (forgotten.count(name) != 0) *function = nullptr;
  *found = *function == nullptr ? cudaDriverEntryPointSymbolNotFound : cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

}  // namespace

void fail(const std::string& function, cudaError_t error) { errors[function] = error; }
void forget(const std::string& function) { forgotten.insert(function); }

}  // namespace fake

using namespace fake;

extern "C" {

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorLaunchOutOfResources: return "cudaErrorLaunchOutOfResources";
    case cudaSuccess: return "no error";
    default: return "another error";
  }
}

const char* cudaGetErrorString(cudaError_t) { return "its meaning"; }

cudaError_t cudaDriverGetVersion(int* version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) { return *count = kGpus, cudaSuccess; }

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {};
  properties->major = 9;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? 9 : 0;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) { return *device = current, cudaSuccess; }

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= kGpus) return returned(cudaErrorInvalidDevice);
  current = device;
  thread_is_bound = true;
  if (!has_context[device]) note("context");
  has_context[device] = true;
  return cudaSuccess;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* found) {
  return entry_point(name, function, found);
}

#if CUDART_VERSION < 13000  // the host code calls it up to 12.4
cudaError_t cudaGetDriverEntryPoint(const char* name, void** function, unsigned long long,
                                    cudaDriverEntryPointQueryResult* found) {
  return entry_point(name, function, found);
}
#endif

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int bytes) {
  note("attribute " + std::to_string(bytes));
  return result_of("cudaFuncSetAttribute");
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel, void** arguments) {
  unsigned cluster = 1;
  bool early = false;
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config->attrs[i];
    if (attribute.id == cudaLaunchAttributeClusterDimension) cluster = attribute.val.clusterDim.x;
    if (attribute.id == cudaLaunchAttributeProgrammaticStreamSerialization) {
      early = attribute.val.programmaticStreamSerializationAllowed != 0;
    }
  }
  note("launch of kernel " + std::to_string(reinterpret_cast<std::uintptr_t>(kernel)) + " with " +
       std::to_string(*static_cast<const int*>(arguments[0])) + ", grid " + std::to_string(config->gridDim.x) + "x" +
       std::to_string(config->gridDim.y) + "x" + std::to_string(config->gridDim.z) + ", " +
       std::to_string(config->blockDim.x) + " threads, cluster " +
       std::to_string(cluster) + ", stream " + std::to_string(reinterpret_cast<std::uintptr_t>(config->stream)) +
       (early ? ", early" : ""));
  return result_of("cudaLaunchKernelExC");
}

}  // extern "C"
