// SPDX-License-Identifier: Apache-2.0
// Element types. A number narrower than float is its bits; only arch.h converts between them and float.
#pragma once

#include <cstdint>

// For small functions that kernels and the code around them share.
#ifdef __CUDACC__
#define AAPT_HOST_DEVICE __host__ __device__
#else
#define AAPT_HOST_DEVICE
#endif

namespace aapt {

enum class Dtype : int { kFloat32, kBFloat16, kFloat16, kInt32, kInt64, kUInt8 };

struct bfloat16 {
  std::uint16_t bits;
};

struct float16 {
  std::uint16_t bits;
};

// Unit that one thread moves at once: 16 bytes, 8 half-precision elements.
struct alignas(16) Vector16 {
  std::uint32_t word[4];
};

constexpr int kVectorElements = 8;
static_assert(kVectorElements * sizeof(bfloat16) == sizeof(Vector16) && sizeof(bfloat16) == sizeof(float16));

constexpr int kPageSlots = 64;

// Columns that kernels give to a head. Those past its width are zeros there; in memory other data lies in their place.
constexpr int padded_width(int head_width) { return (head_width + 63) / 64 * 64; }

}  // namespace aapt
