// SPDX-License-Identifier: Apache-2.0
// Parameters of the channel_concat kernel. The maths is in python/aapt_fast/ops/channel_concat.py.
#pragma once

#include <cstdint>

#include "common/launch.h"

namespace aapt {

struct ChannelConcatParams {
  // Latent frames [B, C, h, w] in any memory format. The strides count elements; 64 bits, because a view may lie in a
  // long recording.
  struct Frames {
    const void* pixels;
    std::int64_t frame_stride, channel_stride, row_stride, pixel_stride;
  };
  Frames noised;    // C channels
  Frames recycled;  // C channels
  Frames control;   // the remaining channels; null if there are none

  const void* weight;          // [features, columns], rows dense
  std::int64_t weight_stride;  // from row to row
  const void* bias;            // [features] or null
  std::int64_t bias_stride;
  void* tokens;                // [B, tokens, features], dense

  int frames;               // B
  int channels;             // C
  int height, width;        // of a frame, in pixels
  int token_count;          // per frame: patches
  int columns;              // (2 C + Cc) * patch^2, the length of the products
  int features;             // d
  bool vector_stores;       // every row of `tokens` starts at a multiple of 16 bytes
};

// One instantiation per element type and side of a patch.
template <class Element, int kPatch>
void launch_channel_concat_portable(const ChannelConcatParams& params, const Stream& stream);

}  // namespace aapt
