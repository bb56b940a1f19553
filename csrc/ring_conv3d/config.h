// SPDX-License-Identifier: Apache-2.0
// Tiles and shared memory of the portable convolution. README.md has the arithmetic behind the sizes.
#pragma once

#include "common/types.h"

namespace aapt {

// A block computes kOutputsPerBlock columns of kRowsOfTile x 16 pixels; kHaloPixels is 1 where taps lie beside the pixel.
template <class ElementType, int kOutputsPerBlock, int kRowsOfTile, int kHaloPixels>
struct RingConv3dPortableConfig {
  using Element = ElementType;
  static constexpr int kOutputs = kOutputsPerBlock;
  static constexpr int kTileHeight = kRowsOfTile, kTileWidth = 16;  // an operand of mma.sync is a row of the tile
  static constexpr int kHalo = kHaloPixels;

  static constexpr int kWarps = 4;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kRowsPerWarp = 4;
  static constexpr int kPixelWarps = kTileHeight / kRowsPerWarp;
  static constexpr int kOutputsPerWarp = kOutputs / (kWarps / kPixelWarps);
  static_assert(kTileHeight % kRowsPerWarp == 0 && kWarps % kPixelWarps == 0);
  static_assert(kOutputsPerWarp % 16 == 0);

  // Products are summed over slabs of 32 channels of one frame: a patch, the tile with its halo, serves all taps in it.
  static constexpr int kSlab = 32;
  static constexpr int kPieces = kSlab / kVectorElements;  // of 16 bytes
  static constexpr int kPatchHeight = kTileHeight + 2 * kHalo, kPatchWidth = kTileWidth + 2 * kHalo;
  static constexpr int kPatchPixels = kPatchHeight * kPatchWidth;

  // A step is one tap of one slab. Its weight, and the patch if the step is the first of a slab, are loaded two steps
  // before. A slab with a halo has at least four steps.
  static constexpr int kAhead = 2;
  static constexpr int kWeightStages = kAhead + 1;
  static constexpr int kPatchStages = kHalo ? 2 : kAhead + 1;

  // Eight pixels side by side, or eight rows of the weight, have each piece in other banks: ldmatrix reads them, from
  // any pixel on, without a conflict.
  static AAPT_HOST_DEVICE constexpr int patch_offset(int row, int column, int piece) {
    return (row * kPatchWidth + column) * kSlab + (piece ^ (column / 2 % 4)) * kVectorElements;
  }
  static AAPT_HOST_DEVICE constexpr int weight_offset(int row, int piece) {
    return row * kSlab + (piece ^ (row / 2 % 4)) * kVectorElements;
  }
  static_assert(kPieces == 4 && kPatchWidth % 2 == 0, "two pixels are 128 bytes, all banks once");

  // The result of a warp, on its way from the accumulators to rows of adjacent channels. Rows are 16 bytes longer than
  // they have to be, so that eight of them lie in other banks.
  static constexpr int kPixelsPerWarp = kRowsPerWarp * kTileWidth;
  static constexpr int kResultPitch = kOutputsPerWarp + kVectorElements;

  struct Stages {
    Element patch[kPatchStages][kPatchPixels * kSlab];
    Element weight[kWeightStages][kOutputs * kSlab];
  };
  struct Results {
    Element of_warp[kWarps][kPixelsPerWarp * kResultPitch];
    float squares[kWarps][kPixelsPerWarp];  // sums over the columns of the warp, for a norm
  };
  union SharedMemory {
    Stages stages;
    Results results;
  };
};

}  // namespace aapt
