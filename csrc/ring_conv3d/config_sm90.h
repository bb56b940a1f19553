// SPDX-License-Identifier: Apache-2.0
// Tiles and shared memory of the convolution for Hopper.
#pragma once

#include "common/arch.h"
#include "common/types.h"

namespace aapt {

template <class ElementType, int kTilePixels, int kTileOutputs>
struct RingConv3dSm90Config {
  using Element = ElementType;
  static constexpr int kPixels = kTilePixels, kOutputs = kTileOutputs;
  static_assert(kPixels == 128 || kPixels == 256 || kPixels == 512);

  static constexpr int kCluster = 2;        // blocks with the same weights and other pixels
  static constexpr int kThreads = 3 * 128;  // a warpgroup that loads and two that multiply
  // Pixels of a tile. A row is two groups of eight, so that the next row of a box is an aligned step away.
  static constexpr int kWidth = 16, kHeight = kPixels / kWidth;
  static constexpr int kRowTiles = kPixels / 128;  // products of 64 pixels per warpgroup
  static constexpr int kSums = kOutputs / 2;       // a thread's share of 64 pixels

  static_assert(kRowTiles * kSums <= 128, "more do not fit the registers beside the addresses");

  // Everything lies in slabs of 64 channels, rows of 128 bytes, swizzled: the form of a box and of an operand of wgmma.
  static constexpr int kSlab = 64, kLineBytes = 128;
  static constexpr int kRowBytes = kWidth * kLineBytes;        // of pixels
  static constexpr int kBoxBytes = (kHeight + 2) * kRowBytes;  // with the rows above and below
  static constexpr int kWeightBytes = kOutputs * kLineBytes;   // of one tap
  static_assert(kRowBytes % 1024 == 0 && kWeightBytes / kCluster % 1024 == 0, "operands and boxes have to be aligned");

  // A box serves three taps, so the weights have more stages.
  static constexpr int kBoxes = kPixels == 512 ? 2 : kPixels == 256 ? 3 : 4;
  static constexpr int kRoom = 227 * 1024 - 512 - kBoxes * kBoxBytes;  // for weights; some is for barriers
  static constexpr int kWeights = kRoom / kWeightBytes < 8 ? kRoom / kWeightBytes : 8;

  struct SharedMemory {
    char boxes[kBoxes][kBoxBytes];
    char weights[kWeights][kWeightBytes];
    arch::Barrier full_boxes[kBoxes], empty_boxes[kBoxes];
    arch::Barrier full_weights[kWeights], empty_weights[kWeights];
  };
  static_assert(sizeof(SharedMemory) <= 227 * 1024, "what a block may have");
};

}  // namespace aapt
