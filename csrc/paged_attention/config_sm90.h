// SPDX-License-Identifier: Apache-2.0
// Tile sizes and shared memory of the attention kernel for Hopper.
#pragma once

#include "common/arch.h"
#include "common/types.h"
#include "paged_attention/params.h"

namespace aapt {

// Facts about a tile of two pages for the warpgroups that multiply.
struct TileFacts {
  int valid[2];   // slots 0..valid-1 of a page count; 0: no page, {0, 0} after the last tile
  float bias[2];  // added to the scores of a page before they are scaled

  AAPT_DEVICE bool any() const { return valid[0] > 0; }
  AAPT_DEVICE bool partial() const { return valid[0] < kPageSlots || valid[1] < kPageSlots; }
};

template <class ElementType, int kHeadDimension, bool kSplitsKeys>
struct PagedAttentionSm90Config {
  using Element = ElementType;
  static constexpr int kHeadDim = kHeadDimension;
  static_assert(kHeadDim == 64 || kHeadDim == 128);
  static constexpr bool kSplit = kSplitsKeys;
  static constexpr int kCluster = kSplit ? 2 : 1;  // blocks, along the tokens of a head

  static constexpr int kThreads = 3 * 128;  // a warpgroup that loads and two that multiply 64 rows each
  static constexpr int kRows = 2 * 64;
  // Two pages at once: with one, wgmma would read 128 bytes of shared memory per cycle, all there is.
  static constexpr int kKeys = 2 * kPageSlots;
  // The keys of the next tile and the values of the present one are in use at a time, by warpgroups half a tile apart:
  // the copies have the third stage. One block fills a multiprocessor.
  static constexpr int kStages = 3;

  // Everything lies in slabs of 64 columns, rows of 128 bytes, swizzled: the form of a box and of an operand of wgmma.
  static constexpr int kSlabs = kHeadDim / 64;
  static constexpr int kPageSlabBytes = kPageSlots * 128;
  static constexpr int kTileSlabBytes = 2 * kPageSlabBytes;
  static constexpr int kGroupSlabBytes = 64 * 128;
  static_assert(kPageSlabBytes % 1024 == 0 && kGroupSlabBytes % 1024 == 0, "boxes have to be aligned");

  struct SharedMemory {
    char q[2][kSlabs * kGroupSlabBytes];  // of each multiplying warpgroup; and at the end its result
    char k[kStages][kSlabs * kTileSlabBytes];
    char v[kStages][kSlabs * kTileSlabBytes];
    arch::Barrier full_q, full_k[kStages], full_v[kStages], empty_k[kStages], empty_v[kStages];
    arch::Barrier cleared_v[kStages];  // values of slots that do not count are zero
    TileFacts facts[kStages];  // come and go with the keys
    int broken;                // of the page table, known after the last tile
  };
  static_assert(sizeof(SharedMemory) <= 227 * 1024, "what a block may have");
};

}  // namespace aapt
