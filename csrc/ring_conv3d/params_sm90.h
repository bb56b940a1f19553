// SPDX-License-Identifier: Apache-2.0
// Parameters of the convolution for Hopper, which reads through the copy engine.
#pragma once

#include "common/launch.h"
#include "common/tensor_map.h"
#include "ring_conv3d/arguments.h"
#include "ring_conv3d/params.h"

namespace aapt {

// Pixels and outputs of a tile: one instantiation each.
struct TileShape {
  int pixels, outputs;
};

struct RingConv3dSm90Params {
  RingConv3dParams common;
  TensorMap ring;    // [B * S, H, W, C] in boxes of the rows that a tile's taps see, 16 pixels, 64 channels
  TensorMap weight;  // [P * taps, O, C] in boxes of half of a tile's outputs, 64 channels
  int output_tiles;  // of all outputs
  int tile_columns;  // of a frame
  int tile_pairs;    // of a frame, for the two blocks of a cluster
  int tiles;         // for clusters: of all frames, phases and outputs
  int clusters;      // that share them
};

// The tile with which the waves over so many multiprocessors take the shortest time. README.md has the arithmetic.
TileShape choose_tile(const RingConv3dParams& params, int multiprocessors);

// Parameters of arguments that this kernel takes, for tiles of this shape. Throws as params_of does, and Unsupported
// where eight adjacent outputs would go to two pixels or frames.
RingConv3dSm90Params sm90_params_of(const RingConv3dParams& params, TileShape shape, const RingConv3dArguments& arguments,
                                    const Stream& stream);

template <class Element, int kPixels, int kOutputs>
void launch_ring_conv3d_sm90(const RingConv3dSm90Params& params, const Stream& stream);

}  // namespace aapt
