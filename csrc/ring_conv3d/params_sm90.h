// SPDX-License-Identifier: Apache-2.0
// Parameters of the convolution for Hopper, which reads through the copy engine.
#pragma once

#include "common/launch.h"
#include "common/tensor_map.h"
#include "ring_conv3d/arguments.h"
#include "ring_conv3d/params.h"

namespace aapt {

// Pixels and outputs of a tile: one instantiation each. ops/conv_tile.py chooses.
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

// Parameters for tiles of this shape and at most so many clusters. Throws Unsupported where eight adjacent outputs
// would go to two pixels or frames.
RingConv3dSm90Params sm90_params_of(const RingConv3dParams& params, const RingConv3dArguments& arguments,
                                    TileShape shape, int clusters, const Stream& stream);

template <class Element, int kPixels, int kOutputs>
void launch_ring_conv3d_sm90(const RingConv3dSm90Params& params, const Stream& stream);

}  // namespace aapt
