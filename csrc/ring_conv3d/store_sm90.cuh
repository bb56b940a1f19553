// SPDX-License-Identifier: Apache-2.0
// From the sums of a warpgroup to pixels in the output ring: bias, residual, rounding, and where each mode puts them.
#pragma once

#include <cstdint>

#include "common/arch.h"
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

// Eight adjacent outputs of a pixel, or as many as there are: their places in `out` and in `residual`.
template <class Element>
class EightOutputs {
 public:
  AAPT_DEVICE EightOutputs(const RingConv3dParams& params, const Tile& tile, int first)
      : params_(params),
        place_(params, tile.phase, first),
        count_(params.outputs - first),
        out_frame_(out_frame(params, place_, tile.row, tile.frame)),
        residual_frame_(residual_frame(params, place_, tile.row, tile.frame)) {}

  AAPT_DEVICE bool any() const { return count_ > 0; }

  AAPT_DEVICE Vector16 load_residual(int y, int x) const {
    const Element* from = static_cast<const Element*>(params_.residual) + residual_frame_ +
                          offset_in_frame(params_, place_, y, x);
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

  AAPT_DEVICE void store(Vector16 vector, int y, int x) const {
    Element* to = static_cast<Element*>(params_.out) + out_frame_ + offset_in_frame(params_, place_, y, x);
    if (params_.vectors) {
      arch::store_16(to, vector);
      return;
    }
#pragma unroll 1
    for (int i = 0; i < kVectorElements && i < count_; ++i) {
      to[i].bits = static_cast<std::uint16_t>(vector.word[0]);
      // Move all elements down by one.
#pragma unroll
      for (int word = 0; word < 4; ++word) {
        vector.word[word] = vector.word[word] >> 16 | (word < 3 ? vector.word[word + 1] << 16 : 0);
      }
    }
  }

 private:
  const RingConv3dParams& params_;
  OutputColumn place_;
  int count_;
  std::int64_t out_frame_, residual_frame_;
};

// Bias of this lane's columns, from column `first` on: two adjacent ones in each of four groups of eight.
template <class Element>
AAPT_DEVICE void load_bias(const RingConv3dParams& params, int first, float (&bias)[4][2]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int column = first + 8 * j + arch::lane_index() % 4 * 2 + e;
      const bool there = params.bias && column < params.outputs;
      bias[j][e] = there ? arch::to_float(static_cast<const Element*>(params.bias)[column]) : 0.0f;
    }
  }
}

// Writes the sums of a tile. Four lanes share a row of the sums, two adjacent columns of every eight each. They
// exchange those of 32 columns, so that each has eight adjacent ones, which it moves at once.
template <class Config>
AAPT_DEVICE void store(const Sums<Config>& sums, const RingConv3dSm90Params& params, const Tile& tile, int group) {
  using Element = typename Config::Element;
  const RingConv3dParams& common = params.common;
  const int lane = arch::lane_index(), warp = arch::thread_index() % 128 / 32;
#pragma unroll
  for (int first = 0; first < Config::kOutputs; first += 32) {
    const int column = tile.first_output + first;
    if (column >= common.outputs) break;
    float bias[4][2];
    load_bias<Element>(common, column, bias);
    const EightOutputs<Element> outputs(common, tile, column + lane % 4 * 8);
#pragma unroll
    for (int m = 0; m < Config::kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int pixel = (group * Config::kRowTiles + m) * 64 + warp * 16 + lane / 4 + 8 * half;
        const int y = tile.y + pixel / Config::kWidth, x = tile.x + pixel % Config::kWidth;
        const bool inside = y < common.height && x < common.width && outputs.any();
        // Bring what is added to where the sums are.
        Vector16 added = {};
        if (common.residual) {
          if (inside) added = outputs.load_residual(y, x);
          transpose_among_four_lanes(added);
        }
        Vector16 result;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float* pair = &sums[m][first / 2 + 4 * j + 2 * half];
          const Element low{static_cast<std::uint16_t>(added.word[j])};
          const Element high{static_cast<std::uint16_t>(added.word[j] >> 16)};
          result.word[j] = arch::pack<Element>(pair[0] + bias[j][0] + arch::to_float(low),
                                               pair[1] + bias[j][1] + arch::to_float(high));
        }
        transpose_among_four_lanes(result);
        if (inside) outputs.store(result, y, x);
      }
    }
  }
}

}  // namespace aapt::ring_conv3d_sm90_parts
