// SPDX-License-Identifier: Apache-2.0
// Matrix descriptors: the place and form of a matrix in shared memory, for wgmma.
#pragma once

#include <cstdint>

#include "common/tensor_map.h"

namespace aapt {

// The dense index of an operand: K, or the other one (M of A, N of B). Here A is always K-major.
enum class Major : int { kK = 0, kMN = 1 };

// One operand of one wgmma: 16 elements along K, and all rows M or N.
//
// It is made of core matrices of 8 rows of 16 bytes.
//   K-major, swizzled        the 8 rows are as far apart as the swizzle is wide, the next 8 `stride_bytes` further on;
//                            `leading_bytes` is ignored
//   K-major, no swizzle      a core matrix is 128 adjacent bytes; `leading_bytes` to the next one along K,
//                            `stride_bytes` to the next 8 rows
//   MN-major, swizzled       8 rows of K, each as wide as the swizzle; `stride_bytes` to the next 8 of K,
//                            `leading_bytes` to the next columns of that width
//   MN-major, no swizzle     `stride_bytes` to the next 8 of MN, `leading_bytes` to the next 8 of K
//
// The swizzle permutes by the bits of the address in shared memory, as the copy engine does. `pattern_row` is
// (address / 128) % 8 of the place where the swizzle's pattern starts: 0 for boxes that are aligned to box_alignment().
// That a matrix may then start at any row of a box is what the emulation assumes and what the probe shifted_rows asks.
struct MatrixDescriptor {
  std::uint64_t bits = 0;

  // The matrix moved by `bytes` (a multiple of 16) further on: the next slice along K, or other rows.
  AAPT_HOST_DEVICE constexpr MatrixDescriptor moved(std::int32_t bytes) const {
    return {bits + static_cast<std::uint64_t>(static_cast<std::int64_t>(bytes / 16))};
  }
};

AAPT_HOST_DEVICE constexpr MatrixDescriptor make_matrix_descriptor(std::uint32_t shared_address, Swizzle swizzle,
                                                                   std::uint32_t leading_bytes,
                                                                   std::uint32_t stride_bytes,
                                                                   std::uint32_t pattern_row = 0) {
  const std::uint64_t layout = swizzle == Swizzle::k128Bytes  ? 1
                               : swizzle == Swizzle::k64Bytes ? 2
                               : swizzle == Swizzle::k32Bytes ? 3
                                                              : 0;
  return {(shared_address & 0x3ffffu) >> 4 | static_cast<std::uint64_t>((leading_bytes & 0x3ffffu) >> 4) << 16 |
          static_cast<std::uint64_t>((stride_bytes & 0x3ffffu) >> 4) << 32 |
          static_cast<std::uint64_t>(pattern_row & 7u) << 49 | layout << 62};
}

}  // namespace aapt
