// SPDX-License-Identifier: Apache-2.0
// What both makers of noise check.
#pragma once

#include "channel_concat/params.h"
#include "common/tensor.h"

namespace aapt {

// Checks seed and step, int64 [frames] with any stride, and that the counters of a frame of `size` numbers fit 32 bits.
NoiseKeys noise_keys(const Tensor& seed, const Tensor& step, std::int64_t frames, std::int64_t size);

}  // namespace aapt
