// SPDX-License-Identifier: Apache-2.0
// Tile sizes and shared memory of the portable attention kernel.
#pragma once

#include <cute/layout.hpp>
#include <cute/swizzle_layout.hpp>

#include "common/types.h"

namespace aapt {

// [kRows, kColumns] 16-bit elements in slabs of 64 columns. A row of a slab is 128 bytes, all banks once; the swizzle
// spreads the 16-byte pieces of one column over the banks, so that ldmatrix reads eight rows without a conflict.
template <int kRows, int kColumns>
using TileLayout = decltype(cute::composition(
    cute::Swizzle<3, 3, 3>{},
    cute::Layout<cute::Shape<cute::Int<kRows>, cute::Shape<cute::_64, cute::Int<kColumns / 64>>>,
                 cute::Stride<cute::_64, cute::Stride<cute::_1, cute::Int<kRows * 64>>>>{}));

template <class ElementType, int kHeadDimension>
struct PagedAttentionPortableConfig {
  using Element = ElementType;
  static constexpr int kHeadDim = kHeadDimension;         // in memory
  static constexpr int kPadded = padded_width(kHeadDim);  // of a tile; the columns from kHeadDim on are zeros
  static_assert(kHeadDim % kVectorElements == 0, "rows are copied in pieces of 16 bytes");
  static_assert(kPadded <= 128, "wider heads do not fit the registers");

  static constexpr int kWarps = 4;
  static constexpr int kThreads = 32 * kWarps;
  // Each warp owns two tiles of 16 query rows: a K or V fragment read from shared memory then feeds two products.
  static constexpr int kRowTiles = 2;
  static constexpr int kRowsPerWarp = 16 * kRowTiles;
  static constexpr int kRows = kRowsPerWarp * kWarps;
  static constexpr int kKeys = kPageSlots;  // loaded at once: a page
  // Softmax and both products take this many keys at once; with 128 columns of output more would not fit the registers.
  static constexpr int kKeysAtOnce = kPadded == 64 ? 64 : 32;

  using QueryLayout = TileLayout<kRows, kPadded>;
  using KeyLayout = TileLayout<kKeys, kPadded>;

  struct SharedMemory {
    Element q[kRows * kPadded];  // and at the end the result
    Element k[2][kKeys * kPadded];
    Element v[kKeys * kPadded];
  };
};

}  // namespace aapt
