// SPDX-License-Identifier: Apache-2.0
// GroupNorm of each frame, and SiLU: first the sums of a frame, chunk by chunk, then the norm.
//
// Both kernels cut the pixels of a frame into the same chunks, one per block. A thread has eight channels, the same in
// all of its pixels. Sums are formed in an order that depends on sizes alone. They are those of x minus a number of the
// group, its first channel in the first pixel, so that a mean far from zero costs no digits of the variance.
#pragma once

#include <cmath>

#include "common/arch.h"
#include "common/reduce.cuh"
#include "common/rms_silu.cuh"
#include "common/vector.cuh"
#include "norm_silu/frame.cuh"
#include "norm_silu/params.h"

namespace aapt {

template <class ElementType>
struct GroupNormConfig {
  using Element = ElementType;
  static constexpr int kThreads = 256;
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kPixels = 4;  // of a thread: their loads are on their way together
  static_assert(kNormSiluMaxChannels / kVectorElements <= kThreads);
};

// The pixels and channels of a thread.
template <class Config>
struct GroupNormPlace {
  int frame;
  int channel;                     // the first one of eight
  int row, rows;                   // the thread's place among those that have these channels
  int first_pixel, after_pixel;    // of the chunk

  AAPT_DEVICE explicit GroupNormPlace(const NormSiluParams& params) : frame(arch::block_index().y) {
    const int vectors = params.channels / kVectorElements;
    rows = Config::kThreads / vectors;
    row = arch::thread_index() / vectors;  // `rows` for the last threads, where they do not fill a row: they have none
    channel = arch::thread_index() % vectors * kVectorElements;
    const int chunk = arch::block_index().x, size = (params.pixels + params.chunks - 1) / params.chunks;
    first_pixel = chunk * size;
    after_pixel = first_pixel + size < params.pixels ? first_pixel + size : params.pixels;
  }

  AAPT_DEVICE bool has_pixels() const { return row < rows; }
};

// Calls use(values, pixel) for the pixels of a thread, in their order.
template <class Config, class Use>
AAPT_DEVICE void for_each_pixel(const NormSiluParams& params, const GroupNormPlace<Config>& place, Use use) {
  using Element = typename Config::Element;
  if (!place.has_pixels()) return;
  const auto* x = static_cast<const Element*>(params.x) + frame_of_x(params, place.frame) + place.channel;
#pragma unroll 1
  for (int first = place.first_pixel + place.row; first < place.after_pixel; first += Config::kPixels * place.rows) {
    RawVector<Element> raw[Config::kPixels];
#pragma unroll
    for (int i = 0; i < Config::kPixels; ++i) {
      const int pixel = first + i * place.rows;
      raw[i] = load_raw(x + std::int64_t{pixel < place.after_pixel ? pixel : first} * params.channels);
    }
#pragma unroll
    for (int i = 0; i < Config::kPixels; ++i) {
      const int pixel = first + i * place.rows;
      VectorValues values;
      unpack_raw(raw[i], values);
      if (pixel < place.after_pixel) use(values, pixel);
    }
  }
}

// Element `index` of an array, as a float.
template <class Element>
AAPT_DEVICE float element_of(const Element* elements, std::int64_t index) {
  if constexpr (sizeof(Element) == sizeof(float)) {
    return elements[index];
  } else {
    return arch::to_float(elements[index]);
  }
}

// The number that is subtracted from a group before its sums.
template <class Element>
AAPT_DEVICE float pivot_of(const NormSiluParams& params, int frame, int group) {
  const auto* x = static_cast<const Element*>(params.x) + frame_of_x(params, frame);
  return element_of(x, group * (params.channels / params.groups));
}

// In a namespace of the kernel's name: their machine code belongs to that kernel.
namespace norm_silu_parts::norm_silu_portable {

template <class Config>
struct SumsMemory {
  float of_thread[2 * kVectorElements][Config::kThreads];  // sums of eight channels, then of their squares
};

// Sums of a chunk, for each group.
template <class Config>
AAPT_KERNEL void AAPT_LAUNCH_BOUNDS(Config::kThreads, 1) sums(AAPT_GRID_CONSTANT const NormSiluParams params) {
  using Element = typename Config::Element;
  auto& shared = *reinterpret_cast<SumsMemory<Config>*>(arch::shared_memory());
  const GroupNormPlace<Config> place(params);
  const int group_width = params.channels / params.groups;
  VectorValues pivot, total = {}, squares = {};
#pragma unroll
  for (int i = 0; i < kVectorElements; ++i) {
    pivot[i] = pivot_of<Element>(params, place.frame, (place.channel + i) / group_width);
  }
  for_each_pixel(params, place, [&](const VectorValues& values, int) {
#pragma unroll
    for (int i = 0; i < kVectorElements; ++i) {
      const float difference = values[i] - pivot[i];
      total[i] += difference;
      squares[i] = fmaf(difference, difference, squares[i]);
    }
  });
#pragma unroll
  for (int i = 0; i < kVectorElements; ++i) {
    shared.of_thread[i][arch::thread_index()] = total[i];
    shared.of_thread[kVectorElements + i][arch::thread_index()] = squares[i];
  }
  arch::sync_threads();

  // A warp adds up a group: the channels of all rows.
  const int lane = arch::lane_index(), vectors = params.channels / kVectorElements;
  const std::int64_t chunk = std::int64_t{place.frame} * params.chunks + arch::block_index().x;
#pragma unroll 1
  for (int group = arch::warp_index(); group < params.groups; group += Config::kWarps) {
    float sum[2] = {};
#pragma unroll 1
    for (int i = lane; i < place.rows * group_width; i += 32) {
      const int channel = group * group_width + i % group_width;
      const int thread = i / group_width * vectors + channel / kVectorElements;
      sum[0] += shared.of_thread[channel % kVectorElements][thread];
      sum[1] += shared.of_thread[kVectorElements + channel % kVectorElements][thread];
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) sum[i] = sum_of_lanes<32>(sum[i]);
    if (lane < 2) params.partial[(chunk * params.groups + group) * 2 + lane] = lane == 0 ? sum[0] : sum[1];
  }
}

struct NormMemory {
  float mean[kNormSiluMaxGroups], inverse[kNormSiluMaxGroups];
};

// Mean and 1 / sqrt(variance + eps) of the groups of a frame, from the sums of its chunks.
template <class Config>
AAPT_DEVICE void finish_sums(const NormSiluParams& params, int frame, NormMemory& shared) {
  const int lane = arch::lane_index();
  const float count = static_cast<float>(params.pixels) * static_cast<float>(params.channels / params.groups);
  const float* partial = params.partial + std::int64_t{frame} * params.chunks * params.groups * 2;
#pragma unroll 1
  for (int group = arch::warp_index(); group < params.groups; group += Config::kWarps) {
    float sum[2] = {};
#pragma unroll 1
    for (int chunk = lane; chunk < params.chunks; chunk += 32) {
#pragma unroll
      for (int i = 0; i < 2; ++i) sum[i] += partial[(chunk * params.groups + group) * 2 + i];
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) sum[i] = sum_of_lanes<32>(sum[i]) / count;
    const float variance = fmaxf(fmaf(-sum[0], sum[0], sum[1]), 0.0f);
    if (lane == 0) {
      shared.mean[group] = pivot_of<typename Config::Element>(params, frame, group) + sum[0];
      shared.inverse[group] = arch::rsqrt_approx(variance + params.eps);
    }
  }
}

// The norm of a chunk, from the sums of its frame.
template <class Config>
AAPT_KERNEL void AAPT_LAUNCH_BOUNDS(Config::kThreads, 1) normalise(AAPT_GRID_CONSTANT const NormSiluParams params) {
  using Element = typename Config::Element;
  auto& shared = *reinterpret_cast<NormMemory*>(arch::shared_memory());
  const GroupNormPlace<Config> place(params);
  finish_sums<Config>(params, place.frame, shared);
  arch::sync_threads();

  VectorValues mean, gain, shift;
  load_channels<Element>(params.gamma, place.channel, 1.0f, gain);
  load_channels<Element>(params.beta, place.channel, 0.0f, shift);
#pragma unroll
  for (int i = 0; i < kVectorElements; ++i) {
    const int group = (place.channel + i) / (params.channels / params.groups);
    mean[i] = shared.mean[group];
    gain[i] *= shared.inverse[group];
  }
  auto* out = static_cast<Element*>(params.out) + frame_of_out(params, place.frame) + place.channel;
  for_each_pixel(params, place, [&](VectorValues& values, int pixel) {
#pragma unroll
    for (int i = 0; i < kVectorElements; ++i) values[i] = silu(fmaf(values[i] - mean[i], gain[i], shift[i]));
    store_values(out + std::int64_t{pixel} * params.channels, values);
  });
}

}  // namespace norm_silu_parts::norm_silu_portable

template <class Element>
void launch_group_norm(const NormSiluParams& params, const Stream& stream) {
  namespace kernels = norm_silu_parts::norm_silu_portable;
  using Config = GroupNormConfig<Element>;
  Launch how;
  how.grid.x = params.chunks;
  how.grid.y = static_cast<unsigned>(params.batch) * params.frames;
  how.threads = Config::kThreads;
  how.shared_bytes = sizeof(kernels::SumsMemory<Config>);
  how.stream = stream;
  arch::launch(&kernels::sums<Config>, how, params);
  how.shared_bytes = sizeof(kernels::NormMemory);
  arch::launch(&kernels::normalise<Config>, how, params);
}

}  // namespace aapt
