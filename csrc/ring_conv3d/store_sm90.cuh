// SPDX-License-Identifier: Apache-2.0
// From the sums of a warpgroup to pixels in the output ring: bias, residual, rounding, and where each mode puts them.
#pragma once

#include <cstdint>

#include "common/arch.h"
#include "common/vector.cuh"
#include "ring_conv3d/config_sm90.h"
#include "ring_conv3d/multiply_sm90.cuh"
#include "ring_conv3d/params.h"
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

// The first `count` of eight elements; all of them at once where rows are aligned.
template <class Element>
AAPT_DEVICE Vector16 load_outputs(const Element* from, int count, bool aligned) {
  if (aligned) return arch::load_16(from);
  Vector16 vector = {};
#pragma unroll 1
  for (int i = kVectorElements - 1; i >= 0; --i) {
    // Move all elements up by one, then put this one first.
#pragma unroll
    for (int word = 3; word >= 0; --word) {
      vector.word[word] = vector.word[word] << 16 | (word > 0 ? vector.word[word - 1] >> 16 : 0);
    }
    if (i < count) vector.word[0] |= from[i].bits;
  }
  return vector;
}

template <class Element>
AAPT_DEVICE void store_outputs(Element* to, Vector16 vector, int count, bool aligned) {
  if (aligned) {
    arch::store_16(to, vector);
    return;
  }
#pragma unroll 1
  for (int i = 0; i < kVectorElements && i < count; ++i) {
    to[i].bits = static_cast<std::uint16_t>(vector.word[0]);
    // Move all elements down by one.
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      vector.word[word] = vector.word[word] >> 16 | (word < 3 ? vector.word[word + 1] << 16 : 0);
    }
  }
}

// Writes the sums of a tile. Four lanes share a row of the sums: eight columns in four of them two by two. They exchange
// those of 32 columns, so that each has eight adjacent ones, which it moves at once.
template <class Config>
AAPT_DEVICE void store(const Sums<Config>& sums, const RingConv3dSm90Params& params, const Tile& tile, int group) {
  using Element = typename Config::Element;
  const RingConv3dParams& common = params.common;
  const int lane = arch::lane_index(), warp = arch::thread_index() % 128 / 32;
  const int out_width = common.width * common.space, channels = common.out_channels;
  const std::int64_t frame_elements = std::int64_t{common.height} * common.space * out_width * channels;
  const bool aligned = channels % kVectorElements == 0;

  // Find this thread's pixels in a frame of the result; a negative place for those outside.
  int places[Config::kRowTiles][2];
#pragma unroll
  for (int m = 0; m < Config::kRowTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int pixel = (group * Config::kRowTiles + m) * 64 + warp * 16 + lane / 4 + 8 * half;
      const int y = tile.y + pixel / Config::kWidth, x = tile.x + pixel % Config::kWidth;
      const int place = ((y * common.space + tile.phase_row) * out_width + x * common.space + tile.phase_column);
      places[m][half] = y < common.height && x < common.width ? place * channels : -1;
    }
  }

#pragma unroll
  for (int first = 0; first < Config::kOutputs; first += 32) {
    if (tile.first_output + first >= common.outputs) break;
    // Find the eight outputs of this lane: a block of O' is a frame, a row and a column of the result.
    const int output = tile.first_output + first + lane % 4 * 8, count = common.outputs - output;
    const int block = output / channels, position = block / common.frames_per_frame;
    const int frame = tile.frame * common.frames_per_frame + block % common.frames_per_frame;
    const std::int64_t in_frame = (position / 2 * out_width + position % 2) * channels + output % channels;
    const int slot = slot_of(common.out_start, frame, common.out_slots);
    Element* out = static_cast<Element*>(common.out) +
                   (std::int64_t{tile.row} * common.out_slots + slot) * frame_elements + in_frame;
    const int written = common.frames * common.frames_per_frame;
    const Element* residual = static_cast<const Element*>(common.residual) +
                              (std::int64_t{tile.row} * written + frame) * frame_elements + in_frame;
    float bias[4][2] = {};
    if (common.bias) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int column = tile.first_output + first + 8 * j + lane % 4 * 2 + e;
          if (column < common.outputs) bias[j][e] = arch::to_float(static_cast<const Element*>(common.bias)[column]);
        }
      }
    }
#pragma unroll
    for (int m = 0; m < Config::kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int place = places[m][half];
        const bool inside = place >= 0 && count > 0;
        // Bring what is added to where the sums are.
        Vector16 added = {};
        if (common.residual) {
          if (inside) added = load_outputs(residual + place, count, aligned);
          transpose_among_four_lanes(added);
        }
        Vector16 result;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          float pair[2];
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const Element other{static_cast<std::uint16_t>(added.word[j] >> 16 * e)};
            pair[e] = sums[m][first / 2 + 4 * j + 2 * half + e] + bias[j][e] + arch::to_float(other);
          }
          result.word[j] = arch::pack<Element>(pair[0], pair[1]);
        }
        transpose_among_four_lanes(result);
        if (inside) store_outputs(out + place, result, count, aligned);
      }
    }
  }
}

}  // namespace aapt::ring_conv3d_sm90_parts
