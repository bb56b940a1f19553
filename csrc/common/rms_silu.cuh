// SPDX-License-Identifier: Apache-2.0
// The norm of a pixel over its channels, and SiLU.
#pragma once

#include <cmath>

#include "common/arch.h"

namespace aapt {

// What the norm multiplies the channels of a pixel by, but for their weights. `squares` is the sum of their squares.
AAPT_DEVICE float inverse_norm(float squares, int channels, float eps) {
  return sqrtf(static_cast<float>(channels)) * arch::rsqrt_approx(fmaxf(squares, eps * eps));
}

AAPT_DEVICE float silu(float x) {
  constexpr float kLog2E = 1.44269504f;
  return x * arch::reciprocal_approx(1.0f + arch::exp2_approx(-kLog2E * x));
}

}  // namespace aapt
