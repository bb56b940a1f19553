// SPDX-License-Identifier: Apache-2.0
// Parameters of the norm_silu kernels. The maths is in python/aapt_fast/ops/norm_silu.py.
#pragma once

#include <cstdint>

#include "common/launch.h"

namespace aapt {

constexpr int kNormSiluMaxChannels = 1024;
constexpr int kNormSiluMaxGroups = 128;

// All tensors are dense.
struct NormSiluParams {
  const void* x;                  // [B, T, H, W, C]
  void* out;                      // [B, S', H, W, C]
  const std::int32_t* out_start;  // [1], or null for 0

  struct Weight {
    const void* data;  // [C], or null
    bool is_float32;   // else in the dtype of x
  };
  Weight gamma, beta;
  float eps;

  float* partial;  // [B * T, chunks, groups, 2]: sums over the pixels of a chunk; null without groups
  int chunks;      // that the pixels of a frame are cut into
  int groups;      // 0: norm of a pixel

  int batch, frames, pixels, channels;  // B, T, H * W, C
  int out_slots;
};

// One instantiation per element type.
template <class Element>
void launch_norm_silu_portable(const NormSiluParams& params, const Stream& stream);

}  // namespace aapt
