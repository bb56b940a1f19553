// SPDX-License-Identifier: Apache-2.0
// Distribution of the pixels of a frame over threads.
#pragma once

#include "common/types.h"

namespace aapt {

// A thread has one vector of each of the tokens whose patches cover four adjacent pixels: in each of the channels of
// the vector a rectangle, four pixels wide and a patch high.
template <class ElementType, int kPatchSide>
struct CleanFrameConfig {
  using Element = ElementType;
  static constexpr int kPatch = kPatchSide;
  static_assert(kPatch == 1 || kPatch == 2, "a vector holds whole channels, four pixels hold whole patches");

  static constexpr int kPixels = 4;  // 16 bytes of floats
  static constexpr int kTokens = kPixels / kPatch;
  static constexpr int kChannels = kVectorElements / (kPatch * kPatch);
  static constexpr int kRows = kChannels * kPatch;  // of pixels, of all channels

  // Adjacent lanes have adjacent pixels, 64 bytes of a row, then come the other channels: so that a warp reads whole
  // tokens, and neither reads nor writes a part of a 32-byte sector of a row.
  static constexpr int kNeighbours = 4;
  // The frames of a step are small: small blocks spread them over the GPU.
  static constexpr int kThreads = 64;
};

}  // namespace aapt
