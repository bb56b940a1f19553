// SPDX-License-Identifier: Apache-2.0
#include "ring_conv3d/params_sm90.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "common/tensor.h"

namespace aapt {
namespace {

constexpr int kTileWidth = 16, kSlab = 64, kCluster = 2;

int ceil_divide(int a, int b) { return (a + b - 1) / b; }

// A dense tensor with its dimensions put together to these.
Tensor reshaped(const Tensor& tensor, std::vector<std::int64_t> shape) {
  Tensor result = tensor;
  result.stride.resize(shape.size());
  std::int64_t stride = 1;
  for (std::size_t i = shape.size(); i-- > 0; stride *= shape[i]) result.stride[i] = stride;
  result.shape = std::move(shape);
  return result;
}

}  // namespace

RingConv3dSm90Params sm90_params_of(const RingConv3dParams& params, const RingConv3dArguments& arguments,
                                    TileShape shape, int clusters, const Stream& stream) {
  require_valid(clusters >= 1, "clusters", "at least 1", std::to_string(clusters));
  require_supported(params.out_channels % kVectorElements == 0 || params.outputs == params.out_channels, "out",
                    "a multiple of 8 channels for this kernel and mode", std::to_string(params.out_channels));
  const Tensor &ring = arguments.ring, &weight = arguments.weight;
  const int height = shape.pixels / kTileWidth;
  RingConv3dSm90Params sm90 = {};
  sm90.common = params;
  sm90.ring = make_tensor_map(
      "ring", reshaped(ring, {ring.size(0) * ring.size(1), ring.size(2), ring.size(3), ring.size(4)}),
      {1, height + params.kernel_h - 1, kTileWidth, kSlab}, Swizzle::k128Bytes, stream.device);
  sm90.weight =
      make_tensor_map("weight", reshaped(weight, {weight.size(0) * weight.size(1), weight.size(2), weight.size(3)}),
                      {1, shape.outputs / kCluster, kSlab}, Swizzle::k128Bytes, stream.device);
  const int tile_rows = ceil_divide(params.height, height);
  sm90.output_tiles = ceil_divide(params.outputs, shape.outputs);
  sm90.tile_columns = ceil_divide(params.width, kTileWidth);
  sm90.tile_pairs = ceil_divide(tile_rows * sm90.tile_columns, kCluster);
  const std::int64_t images = std::int64_t{params.batch} * params.frames * params.phases;
  sm90.tiles = to_int("out", "tiles", images * sm90.tile_pairs * sm90.output_tiles);
  sm90.clusters = std::min(sm90.tiles, clusters);
  return sm90;
}

}  // namespace aapt
