// SPDX-License-Identifier: Apache-2.0
// Tensor maps of the emulation: the description itself, checked by the rules that CUDA documents for
// cuTensorMapEncodeTiled without interleaving and with steps of one element.
//
// These rules are written again here, though make_tensor_map checks them: a driver would, too, and an error in one of
// the two shows. The driver's documentation also nests strides, each a multiple of the one before; hardware does not
// need that, and pages with heads outermost depend on it.
#include <algorithm>
#include <array>
#include <cstring>
#include <stdexcept>
#include <string>

#include "common/tensor_map.h"

namespace aapt {
namespace {

void require_rule(bool kept, const char* what, int dimension, const char* expected, std::uint64_t got) {
  if (kept) return;
  throw std::runtime_error("cuTensorMapEncodeTiled (emulated): " + std::string(what) + "[" + std::to_string(dimension) +
                           "]: expected " + expected + ", got " + std::to_string(got));
}

void require_rule(bool kept, const char* what, const char* expected, std::uint64_t got) {
  if (kept) return;
  throw std::runtime_error("cuTensorMapEncodeTiled (emulated): " + std::string(what) + ": expected " + expected +
                           ", got " + std::to_string(got));
}

}  // namespace

TensorMap encode_tensor_map(const MapDescription& description, Dtype, int) {
  constexpr std::array<int, 4> swizzles{0, 32, 64, 128};
  const int rank = description.rank, swizzle = description.swizzle_bytes;
  require_rule(rank >= 1 && rank <= kMaxMapRank, "tensorRank", "1 to 5", rank);
  require_rule(description.address % 16 == 0, "globalAddress", "a multiple of 16", description.address);
  for (int i = 0; i < rank; ++i) {
    const std::uint64_t size = description.size[i], box = description.box[i];
    require_rule(size >= 1 && size <= std::uint64_t{1} << 32, "globalDim", i, "1 to 2^32", size);
    require_rule(box >= 1 && box <= 256, "boxDim", i, "1 to 256", box);
    if (i + 1 == rank) continue;
    const std::uint64_t stride = description.stride_bytes[i];
    require_rule(stride % 16 == 0, "globalStrides", i, "a multiple of 16", stride);
    require_rule(stride < std::uint64_t{1} << 40, "globalStrides", i, "less than 2^40", stride);
    require_rule(stride > 0 || description.size[i + 1] == 1, "globalStrides", i, "more than 0", stride);
  }
  const std::uint64_t row_bytes = std::uint64_t{description.box[0]} * description.element_bytes;
  require_rule(row_bytes % 16 == 0, "bytes of a row of the box", "a multiple of 16", row_bytes);
  require_rule(std::find(swizzles.begin(), swizzles.end(), swizzle) != swizzles.end(), "swizzle", "0, 32, 64 or 128",
               swizzle);
  require_rule(swizzle == 0 || row_bytes <= static_cast<std::uint64_t>(swizzle), "bytes of a row of the box",
               "at most the width of the swizzle", row_bytes);

  TensorMap map = {};
  std::memcpy(&map, &description, sizeof description);
  return map;
}

}  // namespace aapt
