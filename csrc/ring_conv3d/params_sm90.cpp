// SPDX-License-Identifier: Apache-2.0
#include "ring_conv3d/params_sm90.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "common/device_info.h"
#include "common/tensor.h"

namespace aapt {
namespace {

constexpr int kTileWidth = 16, kSlab = 64, kCluster = 2;

std::int64_t ceil_divide(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Tiles of all frames, phases and outputs, for single blocks.
std::int64_t count_tiles(const RingConv3dParams& params, TileShape shape) {
  const std::int64_t in_frame = ceil_divide(params.height, shape.pixels / kTileWidth) *
                                ceil_divide(params.width, kTileWidth);
  return ceil_divide(in_frame, kCluster) * kCluster * params.batch * params.frames * params.phases *
         ceil_divide(params.outputs, shape.outputs);
}

// A dense tensor [a, b, ...] as one with fewer dimensions, of these sizes.
Tensor reshaped(const Tensor& tensor, std::vector<std::int64_t> shape) {
  Tensor result = tensor;
  result.stride.resize(shape.size());
  std::int64_t stride = 1;
  for (std::size_t i = shape.size(); i-- > 0; stride *= shape[i]) result.stride[i] = stride;
  result.shape = std::move(shape);
  return result;
}

}  // namespace

TileShape choose_tile(const RingConv3dParams& params, int multiprocessors) {
  // Shapes and their predicted rates, in TFLOP/s of a GPU whose waves are full.
  constexpr struct {
    TileShape shape;
    double rate;
  } kShapes[] = {{{256, 128}, 759}, {{128, 192}, 759}, {{128, 128}, 730}, {{256, 96}, 691}, {{512, 64}, 651}};
  TileShape best = {};
  double shortest = std::numeric_limits<double>::infinity();
  for (const auto& [shape, rate] : kShapes) {
    const std::int64_t waves = ceil_divide(count_tiles(params, shape), multiprocessors);
    const double time = static_cast<double>(waves) * shape.pixels * shape.outputs / rate;
    if (time < shortest) {
      shortest = time;
      best = shape;
    }
  }
  return best;
}

RingConv3dSm90Params sm90_params_of(const RingConv3dParams& params, TileShape shape, const RingConv3dArguments& arguments,
                                    const Stream& stream) {
  require_supported(params.out_channels % kVectorElements == 0 || params.outputs == params.out_channels, "out",
                    "a multiple of 8 channels for this kernel and mode", std::to_string(params.out_channels));
  const Tensor &ring = arguments.ring, &weight = arguments.weight;
  const int height = shape.pixels / kTileWidth, multiprocessors = multiprocessor_count(stream.device);
  RingConv3dSm90Params sm90 = {};
  sm90.common = params;
  sm90.ring = make_tensor_map(
      "ring", reshaped(ring, {ring.size(0) * ring.size(1), ring.size(2), ring.size(3), ring.size(4)}),
      {1, height + params.kernel_h - 1, kTileWidth, kSlab}, Swizzle::k128Bytes, stream.device);
  sm90.weight =
      make_tensor_map("weight", reshaped(weight, {weight.size(0) * weight.size(1), weight.size(2), weight.size(3)}),
                      {1, shape.outputs / kCluster, kSlab}, Swizzle::k128Bytes, stream.device);
  sm90.output_tiles = static_cast<int>(ceil_divide(params.outputs, shape.outputs));
  sm90.tile_columns = static_cast<int>(ceil_divide(params.width, kTileWidth));
  sm90.tile_pairs =
      static_cast<int>(ceil_divide(ceil_divide(params.height, height) * sm90.tile_columns, kCluster));
  sm90.tiles = to_int("out", "tiles", count_tiles(params, shape) / kCluster);
  sm90.clusters = std::max(1, std::min(sm90.tiles, multiprocessors / kCluster));
  return sm90;
}

}  // namespace aapt
