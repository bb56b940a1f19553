// SPDX-License-Identifier: Apache-2.0
// Tensor maps made by the driver.
#include <cudaTypedefs.h>

#include <cstring>
#include <stdexcept>
#include <string>

#include "common/device_guard.h"
#include "common/driver_function.h"
#include "common/tensor_map.h"

namespace aapt {
namespace {

CUtensorMapDataType data_type(Dtype dtype) {
  switch (dtype) {
    case Dtype::kBFloat16: return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case Dtype::kFloat16: return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    case Dtype::kFloat32: return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
    case Dtype::kInt32: return CU_TENSOR_MAP_DATA_TYPE_INT32;
    default: throw std::invalid_argument(std::string("dtype: expected 2 or 4 bytes, got ") + dtype_name(dtype));
  }
}

CUtensorMapSwizzle swizzle_mode(int bytes) {
  switch (static_cast<Swizzle>(bytes)) {
    case Swizzle::kNone: return CU_TENSOR_MAP_SWIZZLE_NONE;
    case Swizzle::k32Bytes: return CU_TENSOR_MAP_SWIZZLE_32B;
    case Swizzle::k64Bytes: return CU_TENSOR_MAP_SWIZZLE_64B;
    case Swizzle::k128Bytes: return CU_TENSOR_MAP_SWIZZLE_128B;
  }
  throw std::invalid_argument("swizzle: expected 0, 32, 64 or 128 bytes, got " + std::to_string(bytes));
}

}  // namespace

TensorMap encode_tensor_map(const MapDescription& description, Dtype dtype, int device) {
  const DeviceGuard guard(device);  // the driver's function needs a context, which a fresh thread does not have
  static const auto encode = find_driver_function<PFN_cuTensorMapEncodeTiled_v12000>("cuTensorMapEncodeTiled", 12000);
  if (encode == nullptr) {
    throw std::runtime_error("cuTensorMapEncodeTiled: expected a driver for CUDA 12.0 or later, got an older one");
  }
  cuuint64_t size[kMaxMapRank], stride[kMaxMapRank - 1];
  cuuint32_t box[kMaxMapRank], every[kMaxMapRank];
  for (int i = 0; i < description.rank; ++i) {
    size[i] = description.size[i];
    box[i] = description.box[i];
    every[i] = 1;
    if (i + 1 < description.rank) stride[i] = description.stride_bytes[i];
  }
  CUtensorMap encoded;
  const CUresult status =
      encode(&encoded, data_type(dtype), description.rank, reinterpret_cast<void*>(description.address), size, stride,
             box, every, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle_mode(description.swizzle_bytes),
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw std::runtime_error("cuTensorMapEncodeTiled: CUDA driver error " + std::to_string(status));
  }
  TensorMap map;
  static_assert(sizeof map == sizeof encoded);
  std::memcpy(&map, &encoded, sizeof map);
  return map;
}

}  // namespace aapt
