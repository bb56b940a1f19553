// SPDX-License-Identifier: Apache-2.0
// Noise in float32: a thread makes the four numbers of one counter.
#include "channel_concat/params.h"
#include "channel_concat/philox.cuh"
#include "common/arch.h"

namespace aapt {

constexpr int kPhiloxNormalThreads = 256;

struct alignas(16) FourNumbers {
  float lane[4];
};

AAPT_KERNEL void AAPT_LAUNCH_BOUNDS(kPhiloxNormalThreads, 1)
    philox_normal_portable(AAPT_GRID_CONSTANT const PhiloxNormalParams params) {
  const std::int64_t counter =
      std::int64_t{arch::block_index().x} * kPhiloxNormalThreads + arch::thread_index();
  const std::int64_t first = 4 * counter;
  if (first >= params.size) return;
  const int frame = arch::block_index().y;

  // One counter gives two pairs.
  std::uint32_t word[4];
  NormalNumbers(params.keys, frame).words(word, static_cast<std::uint32_t>(counter));
  const NormalPair front = NormalNumbers::transform(word[0], word[1]);
  const NormalPair back = NormalNumbers::transform(word[2], word[3]);
  const FourNumbers numbers = {{front.first, front.second, back.first, back.second}};

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
  constexpr int kNumbers = 4 * kPhiloxNormalThreads;
  Launch how;
  how.grid.x = static_cast<unsigned>((params.size + kNumbers - 1) / kNumbers);
  how.grid.y = params.frames;
  how.threads = kPhiloxNormalThreads;
  how.stream = stream;
  arch::launch(&philox_normal_portable, how, params);
}

}  // namespace aapt
