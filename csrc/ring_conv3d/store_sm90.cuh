// SPDX-License-Identifier: Apache-2.0
// From the sums of a warpgroup to pixels in the output ring: bias, residual, rounding, and where each mode puts them.
#pragma once

#include <cstdint>

#include "common/arch.h"
#include "common/rms_silu.cuh"
#include "ring_conv3d/config_sm90.h"
#include "ring_conv3d/multiply_sm90.cuh"
#include "ring_conv3d/output.cuh"
#include "ring_conv3d/params_sm90.h"
#include "ring_conv3d/tile_sm90.cuh"

namespace aapt::ring_conv3d_sm90_parts {

// Exchanges words among four lanes as a matrix is transposed: lane q gets word q of lane i as its word i.
AAPT_DEVICE void transpose_among_four_lanes(Vector16& vector) {
  const int lane = arch::lane_index();
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    std::uint32_t& even = vector.word[i];
    std::uint32_t& odd = vector.word[i + 1];
    const std::uint32_t got = arch::shuffle_xor(lane & 1 ? even : odd, 1);
    (lane & 1 ? even : odd) = got;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    std::uint32_t& low = vector.word[i];
    std::uint32_t& high = vector.word[i + 2];
    const std::uint32_t got = arch::shuffle_xor(lane & 2 ? low : high, 2);
    (lane & 2 ? low : high) = got;
  }
}

// Eight adjacent outputs of a pixel, or as many as there are.
class EightOutputs {
 public:
  AAPT_DEVICE EightOutputs(const RingConv3dParams& params, const Tile& tile, int first)
      : place(params, tile.phase, first), params_(params), count_(params.outputs - first) {}

  AAPT_DEVICE bool any() const { return count_ > 0; }

  // From a frame of a tensor that is laid out as `out` is.
  template <class Element>
  AAPT_DEVICE Vector16 load(const Element* frame, int y, int x) const {
    const Element* from = frame + offset_in_frame(params_, place, y, x);
    if (params_.vectors) return arch::load_16(from);
    Vector16 vector = {};
#pragma unroll 1
    for (int i = kVectorElements - 1; i >= 0; --i) {
      // Move all elements up by one, then put this one first.
#pragma unroll
      for (int word = 3; word >= 0; --word) {
        vector.word[word] = vector.word[word] << 16 | (word > 0 ? vector.word[word - 1] >> 16 : 0);
      }
      if (i < count_) vector.word[0] |= from[i].bits;
    }
    return vector;
  }

  // To element `frame` of a target and on.
  template <class Element>
  AAPT_DEVICE void store(void* target, std::int64_t frame, Vector16 vector, int y, int x) const {
    const std::int64_t first = frame + offset_in_frame(params_, place, y, x);
    if (params_.vectors) {
      arch::store_16(static_cast<Element*>(target) + first, vector);
      return;
    }
#pragma unroll 1
    for (int i = 0; i < kVectorElements && i < count_; ++i) {
      const Element element{static_cast<std::uint16_t>(vector.word[0])};
      if (params_.bytes) {
        static_cast<std::uint8_t*>(target)[first + i] = colour_of(arch::to_float(element));
      } else {
        static_cast<Element*>(target)[first + i] = element;
      }
      // Move all elements down by one.
#pragma unroll
      for (int word = 0; word < 4; ++word) {
        vector.word[word] = vector.word[word] >> 16 | (word < 3 ? vector.word[word + 1] << 16 : 0);
      }
    }
  }

  const OutputColumn place;

 private:
  const RingConv3dParams& params_;
  int count_;
};

// Values of this lane's columns, from column `first` on: two adjacent ones in each of four groups of eight.
using LaneColumns = float[4][2];

// Those of a vector [O]; zero where there is none, and after its end.
template <class Element>
AAPT_DEVICE void load_columns(const RingConv3dParams& params, const void* values, bool is_float32, int first,
                              LaneColumns& columns) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int column = first + 8 * j + arch::lane_index() % 4 * 2 + e;
      columns[j][e] = 0.0f;
      if (!values || column >= params.outputs) continue;
      columns[j][e] = is_float32 ? static_cast<const float*>(values)[column]
                                 : arch::to_float(static_cast<const Element*>(values)[column]);
    }
  }
}

// The rounded result of 64 pixels of a warpgroup. A warp has 16 of them, one row of the tile; a lane has pixels lane / 4
// and lane / 4 + 8, and for each 32 outputs four words of two adjacent ones, which are eight outputs apart.
template <class Config>
using Rounded = Vector16[2][Config::kOutputs / 32];

// The row of a warp, and what a lane has of it.
struct RowOfPixels {
  int y, x;  // of the lane's first pixel

  template <class Config>
  AAPT_DEVICE static RowOfPixels of(const Tile& tile, int group, int m) {
    static_assert(Config::kWidth == 16, "a row of the tile is what a warp has of 64 pixels");
    const int warp = arch::thread_index() % 128 / 32;
    return {tile.y + (group * Config::kRowTiles + m) * 4 + warp, tile.x + arch::lane_index() / 4};
  }

  AAPT_DEVICE bool has(const RingConv3dParams& params, int half) const {
    return y < params.height && x + 8 * half < params.width;
  }
};

// Adds bias and residual, and rounds. Four lanes share a pixel, two adjacent columns of every eight each. Of the residual
// each of them reads eight adjacent columns at once; they exchange those of 32.
template <class Config>
AAPT_DEVICE void round_sums(const float (&sums)[Config::kSums], const RingConv3dParams& params, const Tile& tile,
                            const RowOfPixels& row, Rounded<Config>& rounded) {
  using Element = typename Config::Element;
#pragma unroll
  for (int first = 0; first < Config::kOutputs; first += 32) {
    const int column = tile.first_output + first;
    if (column >= params.outputs) break;
    LaneColumns bias;
    load_columns<Element>(params, params.bias, false, column, bias);
    const EightOutputs outputs(params, tile, column + arch::lane_index() % 4 * 8);
    const Element* residual = residual_frame<Element>(params, outputs.place, tile.row, tile.frame);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Vector16 added = {};
      if (params.residual) {
        if (row.has(params, half) && outputs.any()) added = outputs.load(residual, row.y, row.x + 8 * half);
        transpose_among_four_lanes(added);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float* pair = &sums[first / 2 + 4 * j + 2 * half];
        const Element low{static_cast<std::uint16_t>(added.word[j])};
        const Element high{static_cast<std::uint16_t>(added.word[j] >> 16)};
        rounded[half][first / 32].word[j] = arch::pack<Element>(pair[0] + bias[j][0] + arch::to_float(low),
                                                                pair[1] + bias[j][1] + arch::to_float(high));
      }
    }
  }
}

template <class Element>
AAPT_DEVICE void unpack(std::uint32_t word, float& low, float& high) {
  low = arch::to_float(Element{static_cast<std::uint16_t>(word)});
  high = arch::to_float(Element{static_cast<std::uint16_t>(word >> 16)});
}

// SiLU of the norm of each pixel, of which the tile has all outputs.
template <class Config>
AAPT_DEVICE void normalise(const RingConv3dParams& params, Rounded<Config>& rounded) {
  using Element = typename Config::Element;
  float inverse[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float squares = 0.0f;
#pragma unroll
    for (int first = 0; first < Config::kOutputs; first += 32) {
      if (first >= params.outputs) break;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float low, high;
        unpack<Element>(rounded[half][first / 32].word[j], low, high);
        squares = fmaf(high, high, fmaf(low, low, squares));
      }
    }
    squares += arch::shuffle_xor(squares, 1);
    squares += arch::shuffle_xor(squares, 2);
    inverse[half] = inverse_norm(squares, params.outputs, params.eps);
  }
#pragma unroll
  for (int first = 0; first < Config::kOutputs; first += 32) {
    if (first >= params.outputs) break;
    LaneColumns gain;
    load_columns<Element>(params, params.gamma, params.gamma_is_float32, first, gain);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        std::uint32_t& word = rounded[half][first / 32].word[j];
        float low, high;
        unpack<Element>(word, low, high);
        word = arch::pack<Element>(silu(low * inverse[half] * gain[j][0]), silu(high * inverse[half] * gain[j][1]));
      }
    }
  }
}

// Writes to `target`. The four lanes of a pixel exchange their words first, so that each stores eight adjacent outputs.
template <class Config>
AAPT_DEVICE void write(const Rounded<Config>& rounded, const RingConv3dParams& params, const RingTarget& target,
                       const Tile& tile, const RowOfPixels& row) {
  using Element = typename Config::Element;
#pragma unroll
  for (int first = 0; first < Config::kOutputs; first += 32) {
    const int column = tile.first_output + first;
    if (column >= params.outputs) break;
    const EightOutputs outputs(params, tile, column + arch::lane_index() % 4 * 8);
    const std::int64_t frame = target_frame(params, target, outputs.place, tile.row, tile.frame);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Vector16 result = rounded[half][first / 32];
      transpose_among_four_lanes(result);
      if (!row.has(params, half) || !outputs.any()) continue;
      outputs.template store<Element>(target.data, frame, result, row.y, row.x + 8 * half);
    }
  }
}

// Writes the sums of a tile, 64 pixels of the warpgroup at a time: the result, its norm, or both.
template <class Config>
AAPT_DEVICE void store(const Sums<Config>& sums, const RingConv3dSm90Params& params, const Tile& tile, int group) {
  const RingConv3dParams& common = params.common;
#pragma unroll
  for (int m = 0; m < Config::kRowTiles; ++m) {
    const RowOfPixels row = RowOfPixels::of<Config>(tile, group, m);
    Rounded<Config> rounded;
    round_sums<Config>(sums[m], common, tile, row, rounded);
#pragma unroll 1
    for (int i = 0; i < 2; ++i) {
      const RingTarget target = i == 0 ? common.out : common.normed;
      if (!target.data) continue;
      if (i == 1) normalise<Config>(common, rounded);
      write<Config>(rounded, common, target, tile, row);
    }
  }
}

}  // namespace aapt::ring_conv3d_sm90_parts
