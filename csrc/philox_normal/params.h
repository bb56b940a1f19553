// SPDX-License-Identifier: Apache-2.0
// Parameters of the philox_normal kernel. The maths is in python/aapt_fast/ops/philox.py.
#pragma once

#include <cstdint>

#include "common/launch.h"

namespace aapt {

struct PhiloxNormalParams {
  const std::int64_t* seed;  // [B]
  const std::int64_t* step;  // [B]
  std::int64_t seed_stride, step_stride;  // in elements

  float* out;          // [B, size], dense
  std::int64_t size;   // numbers per frame
  int frames;          // B
  bool vector_stores;  // every frame of `out` starts at a multiple of 16 bytes and is a multiple of 16 bytes long
};

void launch_philox_normal_portable(const PhiloxNormalParams& params, const Stream& stream);

}  // namespace aapt
