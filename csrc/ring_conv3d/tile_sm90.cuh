// SPDX-License-Identifier: Apache-2.0
// The tiles of a block: which pixels of which frame, which outputs.
#pragma once

#include "common/arch.h"
#include "ring_conv3d/config_sm90.h"
#include "ring_conv3d/params_sm90.h"

namespace aapt::ring_conv3d_sm90_parts {

struct Tile {
  int row;    // of the batch
  int frame;  // of the T frames
  int y, x;   // its first pixel
  int phase;
  int first_output;

  // Blocks of a cluster have neighbouring pixels. Clusters with adjacent numbers have the same pixels and other
  // outputs, then other frames, so that what they read is in the L2 cache together.
  template <class Config>
  AAPT_DEVICE static Tile of(const RingConv3dSm90Params& params, int number) {
    const RingConv3dParams& common = params.common;
    Tile tile;
    tile.first_output = number % params.output_tiles * Config::kOutputs;
    number /= params.output_tiles;
    tile.phase = number % common.phases;
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
