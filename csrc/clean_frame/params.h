// SPDX-License-Identifier: Apache-2.0
// Parameters of the clean_frame kernel. The maths is in python/aapt_fast/ops/clean_frame.py.
#pragma once

#include <cstdint>

#include "common/launch.h"

namespace aapt {

// Strides count elements.
struct CleanFrameParams {
  const void* tokens;  // [B, F N, C patch^2], rows dense: N patches of each frame, row by row
  std::int64_t tokens_batch_stride, token_stride;

  const float* noised;  // [B, C, F, h, w] in any memory format
  std::int64_t batch_stride, channel_stride, frame_stride, row_stride, pixel_stride;

  const float* t;  // [B]
  std::int64_t t_stride;

  float* clean;  // [B, C, F, h, w], dense

  int batch, channels, frames;
  int height, width;   // of a frame, in pixels
  bool whole_vectors;  // a row of `noised`, and of `clean`, consists of vectors of four adjacent pixels, aligned
};

// One instantiation per element type of the tokens and side of a patch.
template <class Element, int kPatch>
void launch_clean_frame_portable(const CleanFrameParams& params, const Stream& stream);

}  // namespace aapt
