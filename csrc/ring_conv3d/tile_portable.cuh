// SPDX-License-Identifier: Apache-2.0
// The tile of a block of the portable convolution, and the sums of a warp.
#pragma once

#include "common/arch.h"
#include "ring_conv3d/output.cuh"
#include "ring_conv3d/params.h"

namespace aapt {

// What a block computes, and which part of it this warp does.
template <class Config>
struct ConvTile {
  int batch, t;
  int phase, first_output;
  int first_y, first_x;
  int warp_row, warp_output;  // first ones of the warp, in the tile
  int first_slot;             // of the oldest frame that frame t sees

  // Blocks with the same pixels are neighbours: the frames are read from memory once, and from L2 for the others.
  AAPT_DEVICE explicit ConvTile(const RingConv3dParams& params)
      : batch(arch::block_index().z), t(arch::block_index().y) {
    const unsigned output_tiles = (params.outputs + Config::kOutputs - 1) / Config::kOutputs;
    const unsigned tiles_per_row = (params.width + Config::kTileWidth - 1) / Config::kTileWidth;
    const unsigned block = arch::block_index().x, others = block / output_tiles, tile = others / params.phases;
    first_output = static_cast<int>(block % output_tiles) * Config::kOutputs;
    phase = static_cast<int>(others % params.phases);
    first_y = static_cast<int>(tile / tiles_per_row) * Config::kTileHeight;
    first_x = static_cast<int>(tile % tiles_per_row) * Config::kTileWidth;
    const int warp = arch::warp_index();
    warp_row = warp % Config::kPixelWarps * Config::kRowsPerWarp;
    warp_output = warp / Config::kPixelWarps * Config::kOutputsPerWarp;
    first_slot = ring_slot(params.start, t, params.slots);
  }
};

// Of a warp: [16 pixels, 8 columns] each.
template <class Config>
using ConvSums = float[Config::kRowsPerWarp][Config::kOutputsPerWarp / 8][4];

}  // namespace aapt
