// SPDX-License-Identifier: Apache-2.0
// Kernels that measure the hardware; bench/measure_hardware.py runs them.
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
  const int loads = params.value[1], boxes = params.value[3], cluster = arch::cluster_size();
  const bool multicast = params.value[2] != 0;
  const int group = arch::block_index().x / cluster, groups = arch::grid_size().x / cluster;
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
  require_valid(blocks % cluster == 0 && loads >= kLoadStages, "values", "whole clusters, at least 4 loads",
                std::to_string(blocks) + " blocks, " + std::to_string(loads) + " loads");
  params.map[0] = make_tensor_map("inputs[0]", arguments.inputs[0], {kBoxRows / cluster, kRowBytes / 4},
                                  Swizzle::kNone, stream.device);
  params.value[3] = to_int("inputs[0]", "boxes", rows / kBoxRows);
  Launch how = one_block(32, sizeof(BandwidthShared), stream);
  how.grid.x = static_cast<unsigned>(blocks);
  how.cluster = static_cast<unsigned>(cluster);
  arch::launch(&l2_bandwidth_kernel, how, params);
}

// ---- shifted_rows: patch [256, 64], B [64, 64] in bfloat16 -> float [64, 64] ----
// values: shift, pitch, pattern row of the descriptor. Row 8 g + r of A is row shift + g pitch + r of the patch, which
// lies swizzled in shared memory as one box: A's descriptor starts in the middle of the swizzle's pattern.

struct ShiftedShared {
  char patch[256 * 128];
  char b[64 * 128];
  arch::Barrier barrier;
};

AAPT_KERNEL void AAPT_LAUNCH_BOUNDS(128, 1) shifted_rows_kernel(AAPT_GRID_CONSTANT const Params params) {
  auto& shared = shared_struct<ShiftedShared>();
  const int thread = arch::thread_index();
  if (thread == 0) {
    arch::barrier_init(&shared.barrier, 1);
    arch::barrier_init_fence();
    arch::barrier_arrive_expect_bytes(&shared.barrier, sizeof shared.patch + sizeof shared.b);
    arch::tile_load(shared.patch, params.map[0], &shared.barrier, {0, 0});
    arch::tile_load(shared.b, params.map[1], &shared.barrier, {0, 0});
  }
  arch::sync_threads();
  arch::barrier_wait(&shared.barrier, 0);
  const auto a = make_matrix_descriptor(arch::shared_address(shared.patch) + 128 * params.value[0], Swizzle::k128Bytes,
                                        0, 128 * params.value[1], params.value[2]);
  const auto b = make_matrix_descriptor(arch::shared_address(shared.b), Swizzle::k128Bytes, 0, 1024);
  float d[32];
  arch::wgmma_fence(d);
#pragma unroll
  for (int step = 0; step < 4; ++step) arch::wgmma<bfloat16>(d, a.moved(32 * step), b.moved(32 * step), step > 0);
  arch::wgmma_commit();
  arch::wgmma_wait<0>(d);
  float* out = static_cast<float*>(params.output[0]);
  const int row = thread / 32 * 16 + thread % 32 / 4;
#pragma unroll
  for (int i = 0; i < 32; ++i) out[(row + i / 2 % 2 * 8) * 64 + i / 4 * 8 + thread % 4 * 2 + i % 2] = d[i];
}

void shifted_rows(const Arguments& arguments, const Stream& stream) {
  Params params = make_params(arguments, 2, 1, 3);
  const int last = params.value[0] + 7 * params.value[1] + 7;
  require_valid(params.value[0] >= 0 && last < 256, "values", "rows 0 to 255", std::to_string(last));
  require_shape("inputs[0]", arguments.inputs[0], {256, 64});
  require_shape("inputs[1]", arguments.inputs[1], {64, 64});
  for (const Tensor& operand : arguments.inputs) require_dtype("inputs", operand, Dtype::kBFloat16);
  params.map[0] = make_tensor_map("inputs[0]", arguments.inputs[0], {256, 64}, Swizzle::k128Bytes, stream.device);
  params.map[1] = make_tensor_map("inputs[1]", arguments.inputs[1], {64, 64}, Swizzle::k128Bytes, stream.device);
  arch::launch(&shifted_rows_kernel, one_block(128, sizeof(ShiftedShared), stream), params);
}

}  // namespace aapt::probes
