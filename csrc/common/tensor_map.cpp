// SPDX-License-Identifier: Apache-2.0
#include "common/tensor_map.h"

#include <string>

namespace aapt {
namespace {

constexpr std::int64_t kMaxMapStride = std::int64_t{1} << 40;  // in bytes, the first one too long

std::string name(const char* argument, const char* what, std::size_t dimension) {
  return std::string(argument) + ", " + what + " of dimension " + std::to_string(dimension);
}

void check_box(const char* argument, const Tensor& tensor, const std::vector<int>& box, Swizzle swizzle) {
  require_valid(box.size() == tensor.shape.size(), argument,
                "a box of " + std::to_string(tensor.shape.size()) + " dimensions, as many as the tensor's",
                std::to_string(box.size()));
  for (std::size_t i = 0; i < box.size(); ++i) {
    require_valid(box[i] >= 1 && box[i] <= kMaxBoxSize, name(argument, "box", i).c_str(), "1 to 256 elements",
                  std::to_string(box[i]));
  }
  const int row_bytes = box.back() * dtype_bytes(tensor.dtype), width = static_cast<int>(swizzle);
  require_valid(row_bytes % 16 == 0, argument, "a box with rows of a multiple of 16 bytes",
                std::to_string(row_bytes));
  require_valid(swizzle == Swizzle::kNone || row_bytes == width, argument,
                "a box with rows of " + std::to_string(width) + " bytes, the width of its swizzle",
                std::to_string(row_bytes));
}

}  // namespace

TensorMap make_tensor_map(const char* argument, const Tensor& tensor, const std::vector<int>& box, Swizzle swizzle,
                          int device) {
  const std::size_t rank = tensor.shape.size();
  const std::int64_t bytes = dtype_bytes(tensor.dtype);
  require_valid(rank >= 1 && rank <= kMaxMapRank, argument, "1 to 5 dimensions", std::to_string(rank));
  require_valid(bytes <= 4, argument, "elements of 2 or 4 bytes", dtype_name(tensor.dtype));
  check_box(argument, tensor, box, swizzle);

  MapDescription description = {};
  description.address = reinterpret_cast<std::uintptr_t>(tensor.data);
  description.rank = static_cast<std::uint8_t>(rank);
  description.element_bytes = static_cast<std::uint8_t>(bytes);
  description.swizzle_bytes = static_cast<std::uint8_t>(swizzle);
  require_valid(description.address % 16 == 0, argument, "an address that is a multiple of 16",
                std::to_string(description.address % 16) + " modulo 16");
  // Bytes from one element to the next of a dimension that has only one: what a contiguous tensor would have.
  std::int64_t natural = 0;
  for (std::size_t i = rank; i-- > 0;) {
    const std::size_t at = rank - 1 - i;
    const std::int64_t size = tensor.shape[i], stride = tensor.stride[i] * bytes;
    require_valid(size >= 1 && size <= std::int64_t{1} << 32, name(argument, "size", i).c_str(), "1 to 2^32 elements",
                  std::to_string(size));
    description.size[at] = static_cast<std::uint64_t>(size);
    description.box[at] = static_cast<std::uint16_t>(box[i]);
    if (at == 0) {
      require_valid(size == 1 || tensor.stride[i] == 1, name(argument, "stride", i).c_str(), "1: adjacent elements",
                    std::to_string(tensor.stride[i]));
    } else {
      require_supported(size == 1 || (stride > 0 && stride % 16 == 0 && stride < kMaxMapStride),
                        name(argument, "stride", i).c_str(), "a positive multiple of 16 bytes below 2^40",
                        std::to_string(stride));
      description.stride_bytes[at - 1] = static_cast<std::uint64_t>(size == 1 ? natural : stride);
    }
    const std::int64_t used = at == 0 ? bytes : static_cast<std::int64_t>(description.stride_bytes[at - 1]);
    natural = size < kMaxMapStride / used ? (size * used + 15) / 16 * 16 : kMaxMapStride - 16;
  }
  return encode_tensor_map(description, tensor.dtype, device);
}

}  // namespace aapt
