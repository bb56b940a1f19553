// SPDX-License-Identifier: Apache-2.0
// Sums over lanes and over a block. Every lane takes part, and all of them get the same bits.
#pragma once

#include "common/arch.h"

namespace aapt {

// Sum over each aligned group of kLanes lanes.
template <int kLanes>
AAPT_DEVICE float sum_of_lanes(float value) {
  static_assert(kLanes >= 1 && kLanes <= 32 && (kLanes & (kLanes - 1)) == 0, "a power of two inside a warp");
#pragma unroll
  for (int mask = kLanes / 2; mask > 0; mask /= 2) value += arch::shuffle_xor(value, mask);
  return value;
}

// Lies in shared memory; for one call of sum_of_block.
template <int kSums>
struct BlockSums {
  float of_warp[kSums][32];
};

// Replaces each of the sums by its sum over the block, whose threads fill whole warps.
template <int kSums>
AAPT_DEVICE void sum_of_block(float (&sums)[kSums], BlockSums<kSums>& shared) {
  const int lane = arch::lane_index(), warp = arch::warp_index();
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    sums[i] = sum_of_lanes<32>(sums[i]);
    if (lane == 0) shared.of_warp[i][warp] = sums[i];
  }
  arch::sync_threads();
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    sums[i] = sum_of_lanes<32>(lane < arch::block_size() / 32 ? shared.of_warp[i][lane] : 0.0f);
  }
}

}  // namespace aapt
