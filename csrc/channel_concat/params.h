// SPDX-License-Identifier: Apache-2.0
// What the kernels of this folder are given. The maths is in python/aapt_fast/ops/{channel_concat,philox}.py.
#pragma once

#include <cstdint>

#include "common/launch.h"

namespace aapt {

// Per frame of the batch a seed and a step. The strides count elements.
struct NoiseKeys {
  const std::int64_t* seed;  // [B]
  const std::int64_t* step;  // [B]
  std::int64_t seed_stride, step_stride;
};

struct PhiloxNormalParams {
  NoiseKeys keys;
  float* out;         // [B, size], dense
  std::int64_t size;  // numbers per frame
  int frames;         // B
  bool vector_stores; // every frame of `out` starts at a multiple of 16 bytes and is a multiple of 16 bytes long
};

void launch_philox_normal_portable(const PhiloxNormalParams& params, const Stream& stream);

struct ChannelConcatParams {
  // Latent frames [B, C, h, w] in any memory format. The strides count elements; 64 bits, because a view may lie in a
  // long recording.
  struct Frames {
    const void* pixels;
    std::int64_t frame_stride, channel_stride, row_stride, pixel_stride;
  };
  Frames noised;    // C channels; in the noise variant the frames that `noise` makes
  Frames recycled;  // C channels
  Frames control;   // the remaining channels; null if there are none

  const void* weight;          // [features, columns], rows dense
  std::int64_t weight_stride;  // from row to row
  const void* bias;            // [features] or null
  std::int64_t bias_stride;
  void* tokens;                // [B, tokens, features], dense

  // the noise variant only
  NoiseKeys keys;
  void* noise;  // [B, C, h, w], dense

  int frames;               // B
  int channels;             // C
  int height, width;        // of a frame, in pixels
  int token_count;          // per frame: patches
  int columns;              // (2 C + Cc) * patch^2, the length of the products
  int features;             // d
  int tiles_per_block;      // of the features; a block makes its noise for the first one only
  bool vector_stores;       // every row of `tokens` starts at a multiple of 16 bytes
};

// One instantiation per element type, side of a patch, and for noise given (noised) or made (keys).
template <class Element, int kPatch, bool kMakesNoise>
void launch_channel_concat_portable(const ChannelConcatParams& params, const Stream& stream);

}  // namespace aapt
