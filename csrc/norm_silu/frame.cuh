// SPDX-License-Identifier: Apache-2.0
// What the norm of pixels and that of frames share: where a frame lies, weights of eight channels.
#pragma once

#include "common/arch.h"
#include "common/vector.cuh"
#include "norm_silu/params.h"

namespace aapt {

// Elements of x before frame `frame` of B * T, counted row by row.
AAPT_DEVICE std::int64_t frame_of_x(const NormSiluParams& params, int frame) {
  return std::int64_t{frame} * params.pixels * params.channels;
}

// Elements of out before the slot that this frame goes to.
AAPT_DEVICE std::int64_t frame_of_out(const NormSiluParams& params, int frame) {
  const unsigned slots = params.out_slots, t = frame % params.frames;
  const unsigned first = params.out_start ? static_cast<unsigned>(*params.out_start) % slots : 0;
  const std::int64_t slot = std::int64_t{frame / params.frames} * slots + (first + t) % slots;
  return slot * params.pixels * params.channels;
}

// Weights of eight channels from `channel` on; `missing` where there are none.
template <class Element>
AAPT_DEVICE void load_channels(const NormSiluParams::Weight& weight, int channel, float missing, VectorValues& values) {
  if (!weight.data) {
#pragma unroll
    for (int i = 0; i < kVectorElements; ++i) values[i] = missing;
    return;
  }
  if constexpr (sizeof(Element) == sizeof(float)) {
    load_weights(static_cast<const float*>(weight.data) + channel, values);
  } else {
    load_weights<Element>(weight.data, weight.is_float32, channel, values);
  }
}

}  // namespace aapt
