// SPDX-License-Identifier: Apache-2.0
// Convolution from ring to ring with the copy engine and wgmma, for Hopper: ring_conv3d/sm90. README.md has a drawing.
//
// Blocks come in clusters of two that share their weights, and stay for many tiles. One thread loads, and runs ahead
// into the next tile; two warpgroups multiply half of the pixels of a tile each, and write their result.
#pragma once

#include "common/arch.h"
#include "ring_conv3d/config_sm90.h"
#include "ring_conv3d/load_sm90.cuh"
#include "ring_conv3d/multiply_sm90.cuh"
#include "ring_conv3d/params_sm90.h"
#include "ring_conv3d/store_sm90.cuh"
#include "ring_conv3d/tile_sm90.cuh"

namespace aapt {

template <class Config>
AAPT_KERNEL void AAPT_LAUNCH_BOUNDS(Config::kThreads, 1)
    ring_conv3d_sm90(AAPT_GRID_CONSTANT const RingConv3dSm90Params params) {
  using namespace ring_conv3d_sm90_parts;
  auto& shared = *reinterpret_cast<typename Config::SharedMemory*>(arch::shared_memory());
  // Prepare the barriers, and wait until both blocks see those of the other one.
  constexpr int kWarps = 8;  // that multiply
  if (arch::thread_index() == 0) {
    for (int stage = 0; stage < Config::kBoxes; ++stage) {
      arch::barrier_init(&shared.full_boxes[stage], 1);
      arch::barrier_init(&shared.empty_boxes[stage], kWarps);
    }
    for (int stage = 0; stage < Config::kWeights; ++stage) {
      arch::barrier_init(&shared.full_weights[stage], 1);
      arch::barrier_init(&shared.empty_weights[stage], kWarps * Config::kCluster);
    }
    arch::barrier_init_fence();
  }
  arch::cluster_sync_after_init();

  // Divide the work: a thread of warpgroup 0 loads; 1 and 2 multiply.
  const int group = arch::warp_index() / 4 - 1;
  if (group < 0) {
    arch::registers_decrease<40>();
    if (arch::warp_index() == 0 && arch::elect_one()) {
      arch::prefetch_map(params.ring);
      arch::prefetch_map(params.weight);
      Loader<Config> loader(shared, params);
      for_each_tile<Config>(params, [&](const Tile& tile) { loader.load(tile); });
      loader.finish();
    }
  } else {
    arch::registers_increase<232>();
    Multiplier<Config> multiplier(shared, params, group);
    for_each_tile<Config>(params, [&](const Tile& tile) {
      Sums<Config> sums;
      multiplier.multiply(sums);
      store<Config>(sums, params, tile, group);
    });
  }
}

template <class Element, int kPixels, int kOutputs>
void launch_ring_conv3d_sm90(const RingConv3dSm90Params& params, const Stream& stream) {
  using Config = RingConv3dSm90Config<Element, kPixels, kOutputs>;
  Launch how;
  how.cluster = Config::kCluster;
  how.grid.x = params.clusters * Config::kCluster;
  how.threads = Config::kThreads;
  how.shared_bytes = sizeof(typename Config::SharedMemory);
  how.stream = stream;
  arch::launch(&ring_conv3d_sm90<Config>, how, params);
}

}  // namespace aapt
