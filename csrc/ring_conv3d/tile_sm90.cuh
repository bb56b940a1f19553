// SPDX-License-Identifier: Apache-2.0
// The work of a block: which pixels of which frame, which outputs, and where they lie in the rings.
#pragma once

#include <cstdint>

#include "common/arch.h"
#include "ring_conv3d/config_sm90.h"
#include "ring_conv3d/params.h"

namespace aapt::ring_conv3d_sm90_parts {

// Slot of frame `frame`, counted from the one in slot `*start`, in a ring of `slots`.
AAPT_DEVICE int slot_of(const std::int32_t* start, int frame, int slots) {
  return ((start ? *start % slots : 0) + frame) % slots;
}

struct Tile {
  int row;                     // of the batch
  int frame;                   // of the frames that the convolution gives
  int y, x;                    // its first pixel, in the frames of the ring
  int phase_row, phase_column; // of "upsample", 0 else
  int phase;
  int first_output;

  // Blocks of a cluster have neighbouring pixels. Clusters with adjacent numbers have the same pixels and other outputs,
  // then other frames, so that what they read is in the L2 cache together.
  template <class Config>
  AAPT_DEVICE static Tile of(const RingConv3dSm90Params& params, int number) {
    const RingConv3dParams& common = params.common;
    Tile tile;
    tile.first_output = number % params.output_tiles * Config::kOutputs;
    number /= params.output_tiles;
    tile.phase = number % common.phases;
    tile.phase_row = tile.phase / 2;
    tile.phase_column = tile.phase % 2;
    number /= common.phases;
    tile.frame = number % common.frames;
    number /= common.frames;
    // The second block of the last pair may lie below the frame: it multiplies zeros and writes nothing.
    const int pixels = number % params.tile_pairs * Config::kCluster + arch::cluster_rank();
    tile.y = pixels / params.tile_columns * Config::kHeight;
    tile.x = pixels % params.tile_columns * Config::kWidth;
    tile.row = number / params.tile_pairs;
    return tile;
  }
};

// Calls visit(tile) for every tile of this block.
template <class Config, class Visit>
AAPT_DEVICE void for_each_tile(const RingConv3dSm90Params& params, Visit visit) {
  for (int number = static_cast<int>(arch::block_index().x) / Config::kCluster; number < params.tiles;
       number += params.clusters) {
    visit(Tile::of<Config>(params, number));
  }
}

}  // namespace aapt::ring_conv3d_sm90_parts
