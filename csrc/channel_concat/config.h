// SPDX-License-Identifier: Apache-2.0
// Tile sizes and shared memory of the portable patch embedding.
#pragma once

#include <cute/layout.hpp>
#include <cute/swizzle_layout.hpp>

#include "common/types.h"

namespace aapt {

// [kRows, 64] 16-bit elements. A row is 128 bytes, all banks once; the swizzle spreads the 16-byte pieces of one column
// over the banks, so that eight rows of it are written, and read by ldmatrix, without a conflict.
template <int kRows>
using SlabLayout = decltype(cute::composition(
    cute::Swizzle<3, 3, 3>{},
    cute::Layout<cute::Shape<cute::Int<kRows>, cute::_64>, cute::Stride<cute::_64, cute::_1>>{}));

template <class ElementType, int kPatchSide>
struct ChannelConcatPortableConfig {
  using Element = ElementType;
  static constexpr int kPatch = kPatchSide;
  static_assert(kPatch == 1 || kPatch == 2, "a piece of 8 columns has whole channels");

  // A block makes 64 tokens times 128 features, each of its 8 warps 32 times 32. Fewer warps with larger parts would
  // read less shared memory, but would have no registers left for the pixels that are on their way.
  static constexpr int kTokens = 64, kTokensPerWarp = 32;
  static constexpr int kFeatures = 128, kFeaturesPerWarp = 32;
  static constexpr int kTokenWarps = kTokens / kTokensPerWarp;
  static constexpr int kWarps = kTokenWarps * (kFeatures / kFeaturesPerWarp);
  static constexpr int kThreads = 32 * kWarps;

  // The products are summed over slabs of 64 columns of the weight.
  static constexpr int kSlab = 64;
  static constexpr int kPieces = kSlab / 8;  // of 16 bytes per row of a slab
  // A thread gathers every fourth piece of one token, neighbouring threads those of neighbouring tokens: what they read
  // at once are adjacent patches.
  static constexpr int kGatherStep = kThreads / kTokens;
  static constexpr int kGathered = kPieces / kGatherStep;
  static_assert(kThreads % kTokens == 0 && kPieces % kGatherStep == 0);
  static_assert(kTokens % 32 == 0, "the lanes of a warp gather the same columns");

  using PatchLayout = SlabLayout<kTokens>;
  using WeightLayout = SlabLayout<kFeatures>;

  struct SharedMemory {
    Element patches[2][kTokens * kSlab];
    Element weight[2][kFeatures * kSlab];  // and at the end, in the first one, the result: slabs of 64 features
  };
  static_assert(kSlab % kFeaturesPerWarp == 0, "what a warp makes lies in one slab of the result");
  static_assert(kTokens * kFeatures <= kFeatures * kSlab, "the result fits");
};

}  // namespace aapt
