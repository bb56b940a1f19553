// SPDX-License-Identifier: Apache-2.0
// Everything together: a product of matrices with a warpgroup that loads, two that multiply, and tile stores.
#include "probes/probe.h"

namespace aapt::probes {

// ---- gemm: A [M, K], B [N, K] in bfloat16 -> [M, N] in bfloat16, A B^T; values: variant ----
// Variants: 1 the loading warpgroup does not wait for a free stage, 2 a stage is released before its product is done, 3
// no fence before the store.

constexpr int kTileRows = 128, kTileColumns = 128, kTileDepth = 64, kStages = 3;
constexpr int kSlabBytes = 64 * 128;  // 64 rows of 64 numbers, swizzled

struct GemmShared {
  struct Stage {
    char a[kTileRows * 128];
    char b[kTileColumns * 128];
  } stage[kStages];
  char result[2][2][kSlabBytes];  // of each multiplying warpgroup, in slabs of 64 columns
  arch::Barrier full[kStages], empty[kStages];
};
static_assert(sizeof(GemmShared::Stage) % 1024 == 0 && kSlabBytes % 1024 == 0, "boxes have to be aligned");

AAPT_DEVICE void load_tiles(GemmShared& shared, const Params& params) {
  const int tiles = params.value[1];
  const int row = kTileRows * arch::block_index().y, column = kTileColumns * arch::block_index().x;
  for (int tile = 0; tile < tiles; ++tile) {
    const int stage = tile % kStages;
    if (params.value[0] != 1) arch::barrier_wait(&shared.empty[stage], (tile / kStages & 1) ^ 1);
    arch::barrier_arrive_expect_bytes(&shared.full[stage], sizeof(GemmShared::Stage));
    arch::tile_load(shared.stage[stage].a, params.map[0], &shared.full[stage], {row, tile * kTileDepth});
    arch::tile_load(shared.stage[stage].b, params.map[1], &shared.full[stage], {column, tile * kTileDepth});
  }
}

// The rows of a warpgroup. At most one product is on its way while the next one waits for its operands.
AAPT_DEVICE void multiply_tiles(GemmShared& shared, const Params& params, int group, float (&d)[kTileColumns / 2]) {
  const int tiles = params.value[1], variant = params.value[0];
  const bool leader = arch::thread_index() % 128 == 0;
  for (int tile = 0; tile < tiles; ++tile) {
    const int stage = tile % kStages;
    arch::barrier_wait(&shared.full[stage], tile / kStages & 1);
    const auto a = make_matrix_descriptor(arch::shared_address(shared.stage[stage].a) + group * kSlabBytes,
                                          Swizzle::k128Bytes, 0, 1024);
    const auto b = make_matrix_descriptor(arch::shared_address(shared.stage[stage].b), Swizzle::k128Bytes, 0, 1024);
    arch::wgmma_fence(d);
#pragma unroll
    for (int step = 0; step < kTileDepth / 16; ++step) {
      arch::wgmma<bfloat16>(d, a.moved(32 * step), b.moved(32 * step), tile > 0 || step > 0);
    }
    arch::wgmma_commit();
    if (variant == 2) {
      if (leader) arch::barrier_arrive(&shared.empty[stage]);
    } else {
      arch::wgmma_wait<1>();
      if (leader && tile > 0) arch::barrier_arrive(&shared.empty[(tile - 1) % kStages]);
    }
  }
  arch::wgmma_wait<0>(d);
}

AAPT_DEVICE void store_tile(GemmShared& shared, const Params& params, int group, const float (&d)[kTileColumns / 2]) {
  const int lane = arch::lane_index(), warp = arch::thread_index() % 128 / 32;
#pragma unroll
  for (int column = 0; column < kTileColumns; column += 16) {
    std::uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = arch::pack<bfloat16>(d[column / 2 + 2 * i], d[column / 2 + 2 * i + 1]);
    const std::uint32_t at = (16 * warp + lane % 16) * 128 + (column % 64 + lane / 16 * 8) * 2;
    arch::stmatrix(shared.result[group][column / 64] + swizzled(Swizzle::k128Bytes, at), words);
  }
  if (params.value[0] != 3) arch::fence_proxy_async();
  arch::named_barrier_sync(1 + group, 128);
  if (arch::thread_index() % 128 == 0) {
    const int row = kTileRows * arch::block_index().y + 64 * group, column = kTileColumns * arch::block_index().x;
    for (int slab = 0; slab < 2; ++slab) {
      arch::tile_store(params.map[2], shared.result[group][slab], {row, column + 64 * slab});
    }
    arch::store_commit();
    arch::store_wait_read<0>();
  }
}

AAPT_KERNEL void AAPT_LAUNCH_BOUNDS(384, 1) gemm_kernel(AAPT_GRID_CONSTANT const Params params) {
  auto& shared = shared_struct<GemmShared>();
  const int group = arch::warp_index() / 4;
  if (arch::thread_index() == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      arch::barrier_init(&shared.full[stage], 1);
      arch::barrier_init(&shared.empty[stage], 2);
    }
    arch::barrier_init_fence();
  }
  arch::sync_threads();
  if (group == 0) {
    arch::registers_decrease<40>();
    if (arch::warp_index() == 0 && arch::elect_one()) load_tiles(shared, params);
  } else {
    arch::registers_increase<232>();
    float d[kTileColumns / 2];
    multiply_tiles(shared, params, group - 1, d);
    store_tile(shared, params, group - 1, d);
  }
}

void gemm(const Arguments& arguments, const Stream& stream) {
  Params params = make_params(arguments, 2, 1, 1);
  const Tensor &a = arguments.inputs[0], &b = arguments.inputs[1], &out = arguments.outputs[0];
  require_shape("inputs[0]", a, {kAnySize, kAnySize});
  require_shape("inputs[1]", b, {kAnySize, a.size(1)});
  require_shape("outputs[0]", out, {a.size(0), b.size(0)});
  require_dtype("inputs[0]", a, Dtype::kBFloat16);
  require_dtype("inputs[1]", b, Dtype::kBFloat16);
  require_dtype("outputs[0]", out, Dtype::kBFloat16);
  params.map[0] = make_tensor_map("inputs[0]", a, {kTileRows, kTileDepth}, Swizzle::k128Bytes, stream.device);
  params.map[1] = make_tensor_map("inputs[1]", b, {kTileColumns, kTileDepth}, Swizzle::k128Bytes, stream.device);
  params.map[2] = make_tensor_map("outputs[0]", out, {64, 64}, Swizzle::k128Bytes, stream.device);
  params.value[1] = to_int("inputs[0]", "tiles", (a.size(1) + kTileDepth - 1) / kTileDepth);
  Launch how = one_block(384, sizeof(GemmShared), stream);
  how.grid.x = static_cast<unsigned>((b.size(0) + kTileColumns - 1) / kTileColumns);
  how.grid.y = static_cast<unsigned>((a.size(0) + kTileRows - 1) / kTileRows);
  arch::launch(&gemm_kernel, how, params);
}

}  // namespace aapt::probes
