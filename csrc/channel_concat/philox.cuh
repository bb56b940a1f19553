// SPDX-License-Identifier: Apache-2.0
// Philox4x32-10 and Box-Muller, number for number as python/aapt_fast/ops/philox.py defines them.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/arch.h"
#include "channel_concat/params.h"

namespace aapt {

struct NormalPair {
  float first, second;
};

// The normal numbers of one frame: number n is lane n % 4 of counter n / 4.
class NormalNumbers {
 public:
  AAPT_DEVICE NormalNumbers(const NoiseKeys& keys, int frame)
      : seed_(keys.seed[frame * keys.seed_stride]), step_(keys.step[frame * keys.step_stride]) {}

  // Four random words, one per lane.
  AAPT_DEVICE void words(std::uint32_t (&word)[4], std::uint32_t counter) const {
    constexpr std::uint32_t kMultipliers[2] = {0xD2511F53, 0xCD9E8D57};
    constexpr std::uint32_t kKeySteps[2] = {0x9E3779B9, 0xBB67AE85};
    std::uint32_t key[2] = {low(seed_), high(seed_)};
    word[0] = counter;
    word[1] = 0;
    word[2] = low(step_);
    word[3] = high(step_);
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const std::uint32_t high0 = arch::multiply_high(kMultipliers[0], word[0]), low0 = kMultipliers[0] * word[0];
      const std::uint32_t high1 = arch::multiply_high(kMultipliers[1], word[2]), low1 = kMultipliers[1] * word[2];
      word[0] = high1 ^ word[1] ^ key[0];
      word[1] = low1;
      word[2] = high0 ^ word[3] ^ key[1];
      word[3] = low0;
      key[0] += kKeySteps[0];
      key[1] += kKeySteps[1];
    }
  }

  // Numbers 2 * pair and 2 * pair + 1: the lanes (0, 1) or (2, 3) of a counter are transformed together.
  AAPT_DEVICE NormalPair pair(std::int64_t pair) const {
    std::uint32_t word[4];
    words(word, static_cast<std::uint32_t>(pair / 2));
    return pair % 2 ? transform(word[2], word[3]) : transform(word[0], word[1]);
  }

  // Box and Muller's transform, in double and rounded once.
  static AAPT_DEVICE NormalPair transform(std::uint32_t word0, std::uint32_t word1) {
    const double radius = sqrt(-2.0 * arch::log_double(uniform(word0)));
    double sine, cosine;
    arch::sincospi_double(2.0 * uniform(word1), &sine, &cosine);
    return {static_cast<float>(radius * cosine), static_cast<float>(radius * sine)};
  }

 private:
  static constexpr int kRounds = 10;

  // In (0, 1]. The product is exact, so it makes no difference whether it is fused with the sum.
  static AAPT_DEVICE float uniform(std::uint32_t word) {
    return arch::round_to_float(word) * 0x1p-32f + 0x1p-33f;
  }

  static AAPT_DEVICE std::uint32_t low(std::int64_t x) { return static_cast<std::uint32_t>(x); }
  static AAPT_DEVICE std::uint32_t high(std::int64_t x) {
    return static_cast<std::uint32_t>(static_cast<std::uint64_t>(x) >> 32);
  }

  std::int64_t seed_, step_;
};

}  // namespace aapt
