// SPDX-License-Identifier: Apache-2.0
// Kernel that measures the L2 cache; bench/measure_hardware.py runs it.
#include "probes/probe.h"

namespace aapt::probes {

// ---- l2_bandwidth: int32 [R, 32] -> int32 [blocks, 4], the first word of what each stage held last ----
// values: blocks, loads of each block, multicast (0 or 1). A load is a box of 256 rows, 32 KB; the boxes loaded at the
// same time are different ones. With multicast a cluster of two blocks loads each box once, half of it each.

constexpr int kLoadStages = 4, kBoxRows = 256, kRowBytes = 128;

struct BandwidthShared {
  char box[kLoadStages][kBoxRows * kRowBytes];
  arch::Barrier full[kLoadStages], empty[kLoadStages];
};

AAPT_KERNEL void l2_bandwidth_kernel(AAPT_GRID_CONSTANT const Params params) {
  auto& shared = shared_struct<BandwidthShared>();
  const int blocks = params.value[0], loads = params.value[1], boxes = params.value[3];
  const bool multicast = params.value[2] != 0;
  const int cluster = multicast ? 2 : 1, group = arch::block_index().x / cluster, groups = blocks / cluster;
  if (arch::thread_index() == 0) {
    for (int stage = 0; stage < kLoadStages; ++stage) {
      arch::barrier_init(&shared.full[stage], 1);
      arch::barrier_init(&shared.empty[stage], cluster);
    }
    arch::barrier_init_fence();
  }
  arch::cluster_sync();
  if (arch::thread_index() == 0) {
    for (int i = 0; i < loads + kLoadStages; ++i) {
      const int stage = i % kLoadStages, round = i / kLoadStages;
      if (i >= kLoadStages) {  // what this stage holds has come; all blocks that write to it may know
        arch::barrier_wait(&shared.full[stage], (round - 1) & 1);
        for (int rank = 0; rank < cluster; ++rank) arch::barrier_release_remote(&shared.empty[stage], rank);
      }
      if (i >= loads) continue;
      const auto row = static_cast<int>((std::int64_t{i} * groups + group) % boxes) * kBoxRows;
      if (i >= kLoadStages) arch::barrier_wait(&shared.empty[stage], (round - 1) & 1);
      arch::barrier_arrive_expect_bytes(&shared.full[stage], kBoxRows * kRowBytes);
      if (multicast) {
        const int half = kBoxRows / 2 * arch::cluster_rank();
        arch::tile_load_multicast(shared.box[stage] + half * kRowBytes, params.map[0], &shared.full[stage],
                                  {row + half, 0}, 3);
      } else {
        arch::tile_load(shared.box[stage], params.map[0], &shared.full[stage], {row, 0});
      }
    }
    for (int stage = 0; stage < kLoadStages; ++stage) {
      static_cast<int*>(params.output[0])[kLoadStages * arch::block_index().x + stage] =
          *reinterpret_cast<const int*>(shared.box[stage]);
    }
  }
  arch::sync_warp();
  arch::cluster_sync();  // stay until the other block no longer writes here
}

void l2_bandwidth(const Arguments& arguments, const Stream& stream) {
  Params params = make_params(arguments, 1, 1, 3);
  const int blocks = params.value[0], loads = params.value[1], cluster = params.value[2] ? 2 : 1;
  require_shape("inputs[0]", arguments.inputs[0], {kAnySize, kRowBytes / 4});
  const std::int64_t rows = arguments.inputs[0].size(0);
  require_valid(rows % kBoxRows == 0, "inputs[0]", "a multiple of 256 rows", std::to_string(rows));
  require_valid(loads >= kLoadStages, "values", "at least 4 loads", std::to_string(loads));
  params.map[0] = make_tensor_map("inputs[0]", arguments.inputs[0], {kBoxRows / cluster, kRowBytes / 4},
                                  Swizzle::kNone, stream.device);
  params.value[3] = to_int("inputs[0]", "boxes", rows / kBoxRows);
  Launch how = one_block(32, sizeof(BandwidthShared), stream);
  how.grid.x = static_cast<unsigned>(blocks);
  how.cluster = static_cast<unsigned>(cluster);
  arch::launch(&l2_bandwidth_kernel, how, params);
}

}  // namespace aapt::probes
