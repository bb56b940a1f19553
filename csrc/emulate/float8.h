// SPDX-License-Identifier: Apache-2.0
// e4m3 on the emulated machine.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "common/types.h"

namespace aapt::arch {

inline float to_float(float8 x) {
  const int exponent = x.bits >> 3 & 15, fraction = x.bits & 7;
  if (exponent == 15 && fraction == 7) return NAN;
  const float magnitude = exponent ? std::ldexp(8.0f + fraction, exponent - 10) : std::ldexp(float(fraction), -9);
  return x.bits >> 7 ? -magnitude : magnitude;
}

inline std::uint8_t round_to(float8, float x) {
  const std::uint8_t sign = std::signbit(x) ? 0x80 : 0;
  if (x != x) return 0x7f;
  const float magnitude = std::min(std::fabs(x), 448.0f);
  if (magnitude == 0) return sign;
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  const int scale = std::max(exponent - 4, -9);  // the weight of the last bit kept
  const int units = static_cast<int>(std::nearbyint(std::ldexp(magnitude, -scale)));
  if (scale == -9) return sign | static_cast<std::uint8_t>(units);
  return sign | static_cast<std::uint8_t>(((scale + 9) << 3) + units);  // a carry of `units` moves the exponent
}

}  // namespace aapt::arch
