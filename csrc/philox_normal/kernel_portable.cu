// SPDX-License-Identifier: Apache-2.0
// Philox4x32-10 and Box-Muller, number for number as python/aapt_fast/ops/philox.py defines them. A thread makes the
// four numbers of one counter.
#include <cmath>

#include "common/arch.h"
#include "philox_normal/params.h"

namespace aapt {
namespace {

constexpr int kThreads = 256;
constexpr int kRounds = 10;

struct alignas(16) FourNumbers {
  float lane[4];
};

AAPT_DEVICE std::uint32_t low(std::int64_t x) { return static_cast<std::uint32_t>(x); }
AAPT_DEVICE std::uint32_t high(std::int64_t x) {
  return static_cast<std::uint32_t>(static_cast<std::uint64_t>(x) >> 32);
}

// Four random words of a counter.
AAPT_DEVICE void philox(std::uint32_t (&word)[4], std::int64_t seed, std::int64_t step, std::uint32_t counter) {
  constexpr std::uint32_t kMultipliers[2] = {0xD2511F53, 0xCD9E8D57};
  constexpr std::uint32_t kKeySteps[2] = {0x9E3779B9, 0xBB67AE85};
  std::uint32_t key[2] = {low(seed), high(seed)};
  word[0] = counter;
  word[1] = 0;
  word[2] = low(step);
  word[3] = high(step);
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

// A word as a number in (0, 1]. The product is exact, so fusing it with the sum makes no difference.
AAPT_DEVICE float uniform(std::uint32_t word) { return arch::round_to_float(word) * 0x1p-32f + 0x1p-33f; }

// Box and Muller's transform of two words, in double and rounded once.
AAPT_DEVICE void transform(float* numbers, std::uint32_t word0, std::uint32_t word1) {
  const double radius = sqrt(-2.0 * arch::log_double(uniform(word0)));
  double sine, cosine;
  arch::sincospi_double(2.0 * uniform(word1), &sine, &cosine);
  numbers[0] = static_cast<float>(radius * cosine);
  numbers[1] = static_cast<float>(radius * sine);
}

}  // namespace

AAPT_KERNEL void AAPT_LAUNCH_BOUNDS(kThreads, 1)
    philox_normal_portable(AAPT_GRID_CONSTANT const PhiloxNormalParams params) {
  const std::int64_t counter = std::int64_t{arch::block_index().x} * kThreads + arch::thread_index();
  const std::int64_t first = 4 * counter;
  if (first >= params.size) return;
  const int frame = arch::block_index().y;

  std::uint32_t word[4];
  philox(word, params.seed[frame * params.seed_stride], params.step[frame * params.step_stride],
         static_cast<std::uint32_t>(counter));
  FourNumbers numbers;
  transform(numbers.lane, word[0], word[1]);
  transform(numbers.lane + 2, word[2], word[3]);

  float* out = params.out + frame * params.size + first;
  if (params.vector_stores) {
    *reinterpret_cast<FourNumbers*>(out) = numbers;
  } else {  // frames of any size: 16 bytes would cross from one into the next
#pragma unroll
    for (int lane = 0; lane < 4; ++lane) {
      if (first + lane < params.size) out[lane] = numbers.lane[lane];
    }
  }
}

void launch_philox_normal_portable(const PhiloxNormalParams& params, const Stream& stream) {
  constexpr int kNumbers = 4 * kThreads;
  Launch how;
  how.grid.x = static_cast<unsigned>((params.size + kNumbers - 1) / kNumbers);
  how.grid.y = params.frames;
  how.threads = kThreads;
  how.stream = stream;
  arch::launch(&philox_normal_portable, how, params);
}

}  // namespace aapt
