// SPDX-License-Identifier: Apache-2.0
// Where wgmma finds its operands: in shared memory by their descriptors, in registers by thread.
// tests/kernels/test_layouts.py compares all of it with CuTe.
#pragma once

#include <array>
#include <cstdint>

namespace aapt::emulate {

// An operand in shared memory as its descriptor describes it.
struct Matrix {
  std::uint32_t start, leading, stride, pattern_row, pieces;  // pieces: of 16 bytes in a row of the swizzle, 1 for none

  explicit Matrix(std::uint64_t bits)
      : start((bits & 0x3fff) << 4),
        leading((bits >> 16 & 0x3fff) << 4),
        stride((bits >> 32 & 0x3fff) << 4),
        pattern_row(bits >> 49 & 7),
        pieces(std::array<int, 4>{1, 8, 4, 2}[bits >> 62]) {}

  // Place of piece `along` (16 bytes of the dense index) of row `across`.
  std::uint32_t address(std::uint32_t along, std::uint32_t across, bool mn_major) const {
    std::uint32_t offset = across % 8 * pieces * 16;
    if (mn_major && pieces > 1) {
      offset += along % pieces * 16 + along / pieces * leading + across / 8 * stride;
    } else if (mn_major) {
      offset += along * stride + across / 8 * leading;
    } else {
      offset += across / 8 * stride + along * (pieces > 1 ? 16 : leading);
    }
    const std::uint32_t at = start + offset;
    return at ^ ((((at >> 7) - pattern_row) & (pieces - 1)) << 4);
  }
};

struct Element {
  int row, column;
};

// The element of the result that a thread of the warpgroup has in accumulator i.
constexpr Element accumulator_element(int thread, int i) {
  return {thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8, i / 4 * 8 + thread % 4 * 2 + i % 2};
}

// The element of A [64, 16] that a thread has in half `half` of register `word`.
constexpr Element a_element(int thread, int word, int half) {
  return {thread / 32 * 16 + thread % 32 / 4 + word % 2 * 8, thread % 4 * 2 + word / 2 * 8 + half};
}

}  // namespace aapt::emulate
