// SPDX-License-Identifier: Apache-2.0
// Norm of each pixel over its channels, and SiLU, for every GPU from Ampere on.
//
// A pixel belongs to some adjacent lanes of a warp, a power of two; each has up to four vectors of eight channels, in
// registers from the first load to the store. Memory is read once and written once.
#pragma once

#include "common/arch.h"
#include "common/rms_silu.cuh"
#include "common/vector.cuh"
#include "norm_silu/frame.cuh"
#include "norm_silu/group_norm.cuh"
#include "norm_silu/params.h"

namespace aapt {

template <class ElementType, int kVectorsPerLane>
struct NormSiluConfig {
  using Element = ElementType;
  static constexpr int kVectors = kVectorsPerLane;
  static constexpr int kPixels = 2;  // of a lane: their loads are on their way together
  static constexpr int kThreads = 128;
};

// Lanes that share a pixel of so many vectors: the fewest with at most kMost vectors each.
AAPT_HOST_DEVICE constexpr int lanes_of_pixel(int vectors, int most) {
  int lanes = 1;
  while (lanes * most < vectors) lanes *= 2;
  return lanes;
}

// Sum over `lanes` adjacent lanes, a power of two.
AAPT_DEVICE float sum_of_pixel(float value, int lanes) {
#pragma unroll 1
  for (int mask = lanes / 2; mask > 0; mask /= 2) value += arch::shuffle_xor(value, mask);
  return value;
}

template <class Config>
AAPT_KERNEL void AAPT_LAUNCH_BOUNDS(Config::kThreads, 1)
    norm_silu_portable(AAPT_GRID_CONSTANT const NormSiluParams params) {
  using Element = typename Config::Element;
  const int vectors = params.channels / kVectorElements, lanes = lanes_of_pixel(vectors, Config::kVectors);
  const int lane = arch::thread_index() % lanes, pixels_at_once = Config::kThreads / lanes;
  const int first_pixel = arch::block_index().x * (Config::kPixels * pixels_at_once) + arch::thread_index() / lanes;
  const int frame = arch::block_index().y;
  const auto* x = static_cast<const Element*>(params.x) + frame_of_x(params, frame);
  auto* out = static_cast<Element*>(params.out) + frame_of_out(params, frame);

  // A lane without a vector, or without a pixel, reads the last one, which counts for nothing: all loads can start
  // together.
  const auto has = [&](int i) { return lane + i * lanes < vectors; };
  const auto channel = [&](int i) { return (has(i) ? lane + i * lanes : vectors - 1) * kVectorElements; };
  RawVector<Element> raw[Config::kPixels][Config::kVectors];
#pragma unroll
  for (int p = 0; p < Config::kPixels; ++p) {
    const int pixel = first_pixel + p * pixels_at_once;
    const Element* source = x + std::int64_t{pixel < params.pixels ? pixel : params.pixels - 1} * params.channels;
#pragma unroll
    for (int i = 0; i < Config::kVectors; ++i) raw[p][i] = load_raw(source + channel(i));
  }
  VectorValues gain[Config::kVectors];
#pragma unroll
  for (int i = 0; i < Config::kVectors; ++i) load_channels<Element>(params.gamma, channel(i), 1.0f, gain[i]);

#pragma unroll
  for (int p = 0; p < Config::kPixels; ++p) {
    VectorValues values[Config::kVectors];
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < Config::kVectors; ++i) {
      unpack_raw(raw[p][i], values[i]);
      squares += has(i) ? sum_of_squares(values[i]) : 0.0f;
    }
    squares = sum_of_pixel(squares, lanes);
    const float inverse = inverse_norm(squares, params.channels, params.eps);
    const int pixel = first_pixel + p * pixels_at_once;
    if (pixel >= params.pixels) continue;  // the lanes of a later pixel have none either
#pragma unroll
    for (int i = 0; i < Config::kVectors; ++i) {
#pragma unroll
      for (int j = 0; j < kVectorElements; ++j) values[i][j] = silu(values[i][j] * inverse * gain[i][j]);
      if (has(i)) store_values(out + std::int64_t{pixel} * params.channels + channel(i), values[i]);
    }
  }
}

template <class Config>
void launch_pixel_norm(const NormSiluParams& params, const Stream& stream) {
  const int lanes = lanes_of_pixel(params.channels / kVectorElements, Config::kVectors);
  const unsigned pixels_per_block = Config::kPixels * (Config::kThreads / lanes);
  Launch how;
  how.grid.x = (params.pixels + pixels_per_block - 1) / pixels_per_block;
  how.grid.y = static_cast<unsigned>(params.batch) * params.frames;
  how.threads = Config::kThreads;
  how.stream = stream;
  arch::launch(&norm_silu_portable<Config>, how, params);
}

// Three vectors per lane leave no lane idle for the 96, 192 and 384 channels of the Wan decoder, one or two for powers
// of two.
template <class Element>
void launch_norm_silu_portable(const NormSiluParams& params, const Stream& stream) {
  if (params.groups > 0) return launch_group_norm<Element>(params, stream);
  const int vectors = params.channels / kVectorElements;
  const auto idle = [&](int most) { return lanes_of_pixel(vectors, most) * most - vectors; };
  if (vectors <= 32 && idle(1) == 0) return launch_pixel_norm<NormSiluConfig<Element, 1>>(params, stream);
  if (vectors <= 96 && idle(3) <= idle(4)) return launch_pixel_norm<NormSiluConfig<Element, 3>>(params, stream);
  launch_pixel_norm<NormSiluConfig<Element, 4>>(params, stream);
}

}  // namespace aapt
