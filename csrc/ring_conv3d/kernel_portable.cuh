// SPDX-License-Identifier: Apache-2.0
// Convolution between rings with cp.async and mma.sync, for every GPU from Ampere on.
//
// A block computes some columns of a tile of pixels of one output frame. It goes through the frames that the output
// frame sees, and through each in slabs of 32 channels. The patch of a slab, the tile with a border of one pixel, comes
// to shared memory once, zeros where it leaves the frame; every tap in space reads it at its own shift. Weights come
// tap by tap.
#pragma once

#include "common/arch.h"
#include "ring_conv3d/config.h"
#include "ring_conv3d/output.cuh"
#include "ring_conv3d/params.h"
#include "ring_conv3d/store_portable.cuh"
#include "ring_conv3d/tile_portable.cuh"

namespace aapt {

// A step of the sum: frame `frame` of those seen, a slab of its channels, a tap in space. And where its operands lie.
template <class Config>
struct ConvStep {
  int frame = 0, slab = 0, row = 0, column = 0;
  int patch_stage = 0, weight_stage = 0;

  AAPT_DEVICE void advance(const RingConv3dParams& params) {
    weight_stage = weight_stage + 1 < Config::kWeightStages ? weight_stage + 1 : 0;
    if (++column < params.kernel_w) return;
    column = 0;
    if (++row < params.kernel_h) return;
    row = 0;
    patch_stage = patch_stage + 1 < Config::kPatchStages ? patch_stage + 1 : 0;
    if (++slab * Config::kSlab < params.channels) return;
    slab = 0;
    ++frame;
  }

  AAPT_DEVICE bool exists(const RingConv3dParams& params) const { return frame < params.kernel_t; }
  AAPT_DEVICE bool needs_patch() const { return row == 0 && column == 0; }
};

// Starts the copy of the patch of a step; zeros outside the frame and after the last channel.
template <class Config>
AAPT_DEVICE void load_patch(const RingConv3dParams& params, const ConvTile<Config>& tile, const ConvStep<Config>& step,
                            typename Config::SharedMemory& shared) {
  using Element = typename Config::Element;
  int slot = tile.first_slot + step.frame;
  if (slot >= params.slots) slot -= params.slots;
  const std::int64_t frame_size = std::int64_t{params.height} * params.width * params.channels;
  const Element* frame =
      static_cast<const Element*>(params.ring) + (std::int64_t{tile.batch} * params.slots + slot) * frame_size;
  Element* patch = shared.stages.patch[step.patch_stage];
  const int piece = arch::thread_index() % Config::kPieces;
  const int channel = step.slab * Config::kSlab + piece * kVectorElements;
  constexpr int kPixelsAtOnce = Config::kThreads / Config::kPieces;
#pragma unroll
  for (int first = 0; first < Config::kPatchPixels; first += kPixelsAtOnce) {
    const int pixel = first + arch::thread_index() / Config::kPieces;
    if (pixel >= Config::kPatchPixels) break;
    const int row = pixel / Config::kPatchWidth, column = pixel % Config::kPatchWidth;
    const int y = tile.first_y + row - Config::kHalo, x = tile.first_x + column - Config::kHalo;
    const bool inside = y >= 0 && y < params.height && x >= 0 && x < params.width && channel < params.channels;
    arch::cp_async_16(patch + Config::patch_offset(row, column, piece),
                      frame + (inside ? (y * params.width + x) * params.channels + channel : 0), inside ? 16 : 0);
  }
}

// Starts the copy of the weight of a step; zeros after the last row and channel.
template <class Config>
AAPT_DEVICE void load_weight(const RingConv3dParams& params, const ConvTile<Config>& tile, const ConvStep<Config>& step,
                             typename Config::SharedMemory& shared) {
  using Element = typename Config::Element;
  const int frame_of_all = tile.phase * params.kernel_t + step.frame;
  const int matrix = (frame_of_all * params.kernel_h + step.row) * params.kernel_w + step.column;
  const Element* weight =
      static_cast<const Element*>(params.weight) + std::int64_t{matrix} * params.outputs * params.channels;
  const int piece = arch::thread_index() % Config::kPieces;
  const int channel = step.slab * Config::kSlab + piece * kVectorElements;
  constexpr int kRowsAtOnce = Config::kThreads / Config::kPieces;
#pragma unroll
  for (int first = 0; first < Config::kOutputs; first += kRowsAtOnce) {
    const int row = first + arch::thread_index() / Config::kPieces, output = tile.first_output + row;
    if (row >= Config::kOutputs) break;
    const bool inside = output < params.outputs && channel < params.channels;
    arch::cp_async_16(shared.stages.weight[step.weight_stage] + Config::weight_offset(row, piece),
                      weight + (inside ? output * params.channels + channel : 0), inside ? 16 : 0);
  }
}

// Starts what a step needs; nothing after the last one.
template <class Config>
AAPT_DEVICE void load_step(const RingConv3dParams& params, const ConvTile<Config>& tile, const ConvStep<Config>& step,
                           typename Config::SharedMemory& shared) {
  if (step.exists(params)) {
    if (step.needs_patch()) load_patch(params, tile, step, shared);
    load_weight(params, tile, step, shared);
  }
  arch::cp_async_commit();
}

// sums += pixels weight^T of one step.
template <class Config>
AAPT_DEVICE void multiply_step(const RingConv3dParams& params, const ConvTile<Config>& tile,
                               const ConvStep<Config>& step, const typename Config::SharedMemory& shared,
                               ConvSums<Config>& sums) {
  using Element = typename Config::Element;
  const Element* patch = shared.stages.patch[step.patch_stage];
  const Element* weight = shared.stages.weight[step.weight_stage];
  const int lane = arch::lane_index();
  // The place in the patch that the tap of the warp's first pixel reads.
  const int row = tile.warp_row + step.row + tile.phase / 2 - params.kernel_h / 2 + Config::kHalo;
  const int column = lane % 16 + step.column + tile.phase % 2 - params.kernel_w / 2 + Config::kHalo;
  const int output = tile.warp_output + lane % 8 + lane / 16 * 8;
#pragma unroll
  for (int piece = 0; piece < Config::kPieces; piece += 2) {
    std::uint32_t pixels[Config::kRowsPerWarp][4];
#pragma unroll
    for (int i = 0; i < Config::kRowsPerWarp; ++i) {
      arch::ldmatrix(pixels[i], patch + Config::patch_offset(row + i, column, piece + lane / 16));
    }
#pragma unroll
    for (int n = 0; n < Config::kOutputsPerWarp; n += 16) {
      std::uint32_t columns[4];
      arch::ldmatrix(columns, weight + Config::weight_offset(output + n, piece + lane / 8 % 2));
#pragma unroll
      for (int i = 0; i < Config::kRowsPerWarp; ++i) {
        arch::mma_16x8x16<Element>(sums[i][n / 8], pixels[i], columns[0], columns[1]);
        arch::mma_16x8x16<Element>(sums[i][n / 8 + 1], pixels[i], columns[2], columns[3]);
      }
    }
  }
}

template <class Config>
AAPT_KERNEL void AAPT_LAUNCH_BOUNDS(Config::kThreads, 2)
    ring_conv3d_portable(AAPT_GRID_CONSTANT const RingConv3dParams params) {
  auto& shared = *reinterpret_cast<typename Config::SharedMemory*>(arch::shared_memory());
  const ConvTile<Config> tile(params);
  ConvStep<Config> step, ahead;
#pragma unroll
  for (int i = 0; i < Config::kAhead; ++i) {
    load_step(params, tile, ahead, shared);
    ahead.advance(params);
  }
  ConvSums<Config> sums = {};
#pragma unroll 1
  for (; step.exists(params); step.advance(params)) {
    // The operands of this step are there, and no warp reads those of the previous one any more.
    arch::cp_async_wait<Config::kAhead - 1>();
    arch::sync_threads();
    load_step(params, tile, ahead, shared);
    ahead.advance(params);
    multiply_step(params, tile, step, shared, sums);
  }
  arch::sync_threads();  // the operands make room for the result
  store_tile<Config>(params, tile, sums, shared.results);
}

template <class Element, int kOutputs, int kTileHeight, int kHalo>
void launch_ring_conv3d_portable(const RingConv3dParams& params, const Stream& stream) {
  using Config = RingConv3dPortableConfig<Element, kOutputs, kTileHeight, kHalo>;
  const unsigned tiles_per_row = (params.width + Config::kTileWidth - 1) / Config::kTileWidth;
  const unsigned rows_of_tiles = (params.height + Config::kTileHeight - 1) / Config::kTileHeight;
  const unsigned output_tiles = (params.outputs + Config::kOutputs - 1) / Config::kOutputs;
  Launch how;
  how.grid.x = tiles_per_row * rows_of_tiles * params.phases * output_tiles;
  how.grid.y = params.frames;
  how.grid.z = params.batch;
  how.threads = Config::kThreads;
  how.shared_bytes = sizeof(typename Config::SharedMemory);
  how.stream = stream;
  arch::launch(&ring_conv3d_portable<Config>, how, params);
}

}  // namespace aapt
