// SPDX-License-Identifier: Apache-2.0
// Tensor maps: how the copy engine of a Hopper GPU (TMA) sees a tensor in global memory, and the boxes it copies.
//
// The dimensions of a map, of its box and of the coordinates that a kernel gives are in the order of the tensor's
// shape: the outermost first, the dense one last.
#pragma once

#include <cstdint>
#include <vector>

#include "common/tensor.h"

namespace aapt {

// Permutation of the 16-byte pieces of a box in shared memory: within every 128 bytes, bits 4.. of an address are
// exclusively ored with its bits 7.. (one, two or three of them). The rows of the box are that wide.
enum class Swizzle : int { kNone = 0, k32Bytes = 32, k64Bytes = 64, k128Bytes = 128 };

// The address in shared memory where a box has to start.
AAPT_HOST_DEVICE constexpr std::uint32_t box_alignment(Swizzle swizzle) {
  return swizzle == Swizzle::kNone ? 128 : 8 * static_cast<std::uint32_t>(swizzle);
}

// The offset, from an address aligned as above, where the byte `offset` of a box lies.
AAPT_HOST_DEVICE constexpr std::uint32_t swizzled(Swizzle swizzle, std::uint32_t offset) {
  return offset ^ ((offset >> 7 & (static_cast<std::uint32_t>(swizzle) / 16 - (swizzle != Swizzle::kNone))) << 4);
}

// A kernel takes it as a member of its parameters, which are a grid constant, and never looks inside.
struct alignas(64) TensorMap {
  std::uint64_t opaque[16];
};

constexpr int kMaxMapRank = 5;
constexpr int kMaxBoxSize = 256;

// A map of the tensor for a GPU. The part of a box that lies outside of the tensor is read as zeros and not written.
//
// Throws std::invalid_argument, "<argument>: expected ..., got ...", where the tensor or the box breaks a rule of the
// copy engine: 1 to 5 dimensions of 1 to 2^32 elements; elements of 2 or 4 bytes; an address that is a multiple of
// 16 bytes, the last dimension dense; a box of 1 to 256 elements in each dimension, its rows a multiple of 16 bytes,
// and as wide as the swizzle if there is one (hardware takes narrower rows too, but where it puts them is not
// documented). Throws Unsupported for strides that only the copy engine does not take: those of expanded tensors (0),
// others that are no multiple of 16 bytes, and 2^40 bytes or more.
TensorMap make_tensor_map(const char* argument, const Tensor& tensor, const std::vector<int>& box, Swizzle swizzle,
                          int device);

// Contents of a checked map, in the order of the hardware: the dense dimension first. The emulation keeps it as it is.
struct MapDescription {
  std::uint64_t address;
  std::uint64_t size[kMaxMapRank];
  std::uint64_t stride_bytes[kMaxMapRank - 1];  // of all dimensions but the dense one
  std::uint16_t box[kMaxMapRank];
  std::uint8_t rank, element_bytes, swizzle_bytes;
};
static_assert(sizeof(MapDescription) <= sizeof(TensorMap));

// The two ways to make a map of it: by the driver, or for the emulation.
TensorMap encode_tensor_map(const MapDescription& description, Dtype dtype, int device);

}  // namespace aapt
