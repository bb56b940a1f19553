// SPDX-License-Identifier: Apache-2.0
// From the sums of a block to memory: bias, residual, rounding, the norm of a pixel, and where each mode puts them.
//
// Results go through shared memory, where a warp lays its own pixels and columns down as rows.
#pragma once

#include "common/arch.h"
#include "common/rms_silu.cuh"
#include "common/vector.cuh"
#include "ring_conv3d/config.h"
#include "ring_conv3d/output.cuh"
#include "ring_conv3d/params.h"
#include "ring_conv3d/tile_portable.cuh"

namespace aapt {

// Eight columns of the warp, which some lanes have in common: pixels are divided among those.
template <class Config>
struct PieceOfWarp {
  static constexpr int kPieces = Config::kOutputsPerWarp / kVectorElements;
  static constexpr int kLanesPerPixel = kPieces > 2 ? 8 : 2;  // neighbours write one pixel
  static_assert(kPieces <= kLanesPerPixel);

  int number, first_output;

  AAPT_DEVICE explicit PieceOfWarp(const ConvTile<Config>& tile)
      : number(arch::lane_index() % kLanesPerPixel),
        first_output(tile.first_output + tile.warp_output + number * kVectorElements) {}

  AAPT_DEVICE bool exists(const RingConv3dParams& params) const {
    return number < kPieces && first_output < params.outputs;
  }
};

// Between the result of a warp in shared memory and a tensor that is laid out as `out` is: move(pixel, in_shared,
// in_tensor) for every piece of 8 channels, or for every element where they do not come in vectors. frame_of(place) is
// the frame of the tensor that a column goes to.
template <class Config, class FrameOf, class Move>
AAPT_DEVICE void for_each_result(const RingConv3dParams& params, const ConvTile<Config>& tile,
                                 typename Config::Element* result, FrameOf frame_of, Move move) {
  using Piece = PieceOfWarp<Config>;
  const Piece piece(tile);
  if (!piece.exists(params)) return;
  const int width = params.vectors ? kVectorElements : 1;
#pragma unroll 1
  for (int i = 0; i < kVectorElements; i += width) {
    if (piece.first_output + i >= params.outputs) return;
    const OutputColumn place(params, tile.phase, piece.first_output + i);
    auto* frame = frame_of(place);
#pragma unroll 1
    for (int pixel = arch::lane_index() / Piece::kLanesPerPixel; pixel < Config::kPixelsPerWarp;
         pixel += 32 / Piece::kLanesPerPixel) {
      const int y = tile.first_y + tile.warp_row + pixel / Config::kTileWidth;
      const int x = tile.first_x + pixel % Config::kTileWidth;
      if (y >= params.height || x >= params.width) continue;
      move(pixel, result + pixel * Config::kResultPitch + piece.number * kVectorElements + i,
           frame + offset_in_frame(params, place, y, x));
    }
  }
}

// Sums of squares of the rounded results of a pixel, in the lane that has two of every eight columns of it.
template <class Config>
using ConvSquares = float[2 * Config::kRowsPerWarp];

// Adds the bias and the residual and rounds.
template <class Config>
AAPT_DEVICE void round_tile(const RingConv3dParams& params, const ConvTile<Config>& tile, const ConvSums<Config>& sums,
                            typename Config::Element* result, ConvSquares<Config>& squares) {
  using Element = typename Config::Element;
  const int lane = arch::lane_index();
  if (params.residual) {
    const auto frame_of = [&](const OutputColumn& place) {
      return residual_frame<Element>(params, place, tile.batch, tile.t);
    };
    for_each_result(params, tile, result, frame_of, [&](int, Element* in_shared, const Element* in_residual) {
      if (params.vectors) {
        *reinterpret_cast<Vector16*>(in_shared) = arch::load_16(in_residual);
      } else {
        *in_shared = *in_residual;
      }
    });
    arch::sync_warp();
  }
  const auto* bias = static_cast<const Element*>(params.bias);
#pragma unroll
  for (int n = 0; n < Config::kOutputsPerWarp / 8; ++n) {
    // This lane's two columns, in sixteen of the warp's pixels.
    const int in_warp = 8 * n + lane % 4 * 2;
    float offset[2] = {};
    bool inside[2];  // else zero: the sums are, and what lies in the place of a residual is no number
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int output = tile.first_output + tile.warp_output + in_warp + i;
      inside[i] = output < params.outputs;
      if (bias && inside[i]) offset[i] = arch::to_float(bias[output]);
    }
#pragma unroll
    for (int i = 0; i < 2 * Config::kRowsPerWarp; ++i) {
      const float* pair = sums[i / 2][n] + i % 2 * 2;
      Element* place = result + (8 * i + lane / 4) * Config::kResultPitch + in_warp;
      float low = pair[0] + offset[0], high = pair[1] + offset[1];
      if (params.residual) {
        low += inside[0] ? arch::to_float(place[0]) : 0.0f;
        high += inside[1] ? arch::to_float(place[1]) : 0.0f;
      }
      const std::uint32_t word = arch::pack<Element>(low, high);
      *reinterpret_cast<std::uint32_t*>(place) = word;
      low = arch::to_float(Element{static_cast<std::uint16_t>(word)});
      high = arch::to_float(Element{static_cast<std::uint16_t>(word >> 16)});
      squares[i] = fmaf(high, high, fmaf(low, low, squares[i]));
    }
  }
}

// Writes the rounded result.
template <class Config>
AAPT_DEVICE void write_tile(const RingConv3dParams& params, const ConvTile<Config>& tile,
                            typename Config::Element* result) {
  using Element = typename Config::Element;
  if (params.bytes) {
    const auto frame_of = [&](const OutputColumn& place) {
      return static_cast<std::uint8_t*>(params.out.data) +
             target_frame(params, params.out, place, tile.batch, tile.t);
    };
    for_each_result(params, tile, result, frame_of, [](int, const Element* in_shared, std::uint8_t* in_out) {
      *in_out = colour_of(arch::to_float(*in_shared));
    });
    return;
  }
  const auto frame_of = [&](const OutputColumn& place) {
    return static_cast<Element*>(params.out.data) + target_frame(params, params.out, place, tile.batch, tile.t);
  };
  for_each_result(params, tile, result, frame_of, [&](int, const Element* in_shared, Element* in_out) {
    if (params.vectors) {
      arch::store_16(in_out, *reinterpret_cast<const Vector16*>(in_shared));
    } else {
      *in_out = *in_shared;
    }
  });
}

// Writes SiLU of the norm of the rounded result, of which the block has all columns.
template <class Config>
AAPT_DEVICE void write_normed_tile(const RingConv3dParams& params, const ConvTile<Config>& tile,
                                   const ConvSquares<Config>& squares, typename Config::Results& results) {
  using Element = typename Config::Element;
  const int warp = arch::warp_index(), lane = arch::lane_index();
#pragma unroll
  for (int i = 0; i < 2 * Config::kRowsPerWarp; ++i) {
    float sum = squares[i];  // over the columns of four lanes
    sum += arch::shuffle_xor(sum, 1);
    sum += arch::shuffle_xor(sum, 2);
    if (lane % 4 == 0) results.squares[warp][8 * i + lane / 4] = sum;
  }
  arch::sync_threads();  // a pixel's other columns are another warp's
  const PieceOfWarp<Config> piece(tile);
  VectorValues gain = {};
  if (piece.exists(params)) {
    load_weights<Element>(params.gamma, params.gamma_is_float32, piece.first_output, gain);
  }
  const auto frame_of = [&](const OutputColumn& place) {
    return static_cast<Element*>(params.normed.data) + target_frame(params, params.normed, place, tile.batch, tile.t);
  };
  for_each_result(params, tile, results.of_warp[warp], frame_of,
                  [&](int pixel, const Element* in_shared, Element* in_normed) {
                    float sum = 0.0f;
#pragma unroll
                    for (int other = 0; other < Config::kWarps; other += Config::kPixelWarps) {
                      sum += results.squares[warp % Config::kPixelWarps + other][pixel];
                    }
                    const float inverse = inverse_norm(sum, params.outputs, params.eps);
                    VectorValues values;
                    unpack_vector<Element>(*reinterpret_cast<const Vector16*>(in_shared), values);
#pragma unroll
                    for (int i = 0; i < kVectorElements; ++i) values[i] = silu(values[i] * inverse * gain[i]);
                    store_values(in_normed, values);
                  });
}

template <class Config>
AAPT_DEVICE void store_tile(const RingConv3dParams& params, const ConvTile<Config>& tile,
                            const ConvSums<Config>& sums, typename Config::Results& results) {
  auto* result = results.of_warp[arch::warp_index()];
  ConvSquares<Config> squares = {};
  round_tile<Config>(params, tile, sums, result, squares);
  arch::sync_warp();  // the result of a warp is its own
  if (params.out.data) write_tile<Config>(params, tile, result);
  if (params.normed.data) write_normed_tile<Config>(params, tile, squares, results);
}

}  // namespace aapt
