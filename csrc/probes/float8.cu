// SPDX-License-Identifier: Apache-2.0
// Probes of wgmma with e4m3 operands.
#include "probes/wgmma.cuh"

namespace aapt::probes {

// ---- wgmma_float8: A [64, 128], B [N, 128] -> float [64, N]; values: variant, swizzle, A in registers ----

void wgmma_float8(const Arguments& arguments, const Stream& stream) {
  constexpr Major kK = Major::kK;
  require_dtype("inputs[0]", arguments.inputs.at(0), Dtype::kFloat8);
  (arguments.values.at(2) ? launch_wgmma<float8, kK, kK, true, 8, 16, 32, 64, 96, 128, 192, 256>
                          : launch_wgmma<float8, kK, kK, false, 8, 16, 32, 64, 96, 128, 192, 256>)(arguments, stream);
}

// ---- float8_accumulation: A [64, K], B [64, K] of e4m3 -> float [64, 64]; values: promote ----
// K goes by in tiles of 128. The tensor cores accumulate `promote` tiles (0: all of them), then the sum is added to
// one in float.

struct AccumulationShared {
  char a[64 * kTileBytes];
  char b[64 * kTileBytes];
  arch::Barrier barrier;
};

AAPT_KERNEL void AAPT_LAUNCH_BOUNDS(128, 1) float8_accumulation_kernel(AAPT_GRID_CONSTANT const Params params) {
  auto& shared = shared_struct<AccumulationShared>();
  const int promote = params.value[0], tiles = params.value[1], thread = arch::thread_index();
  const Slabs a{arch::shared_address(shared.a), 128, 64}, b{arch::shared_address(shared.b), 128, 64};
  if (thread == 0) {
    arch::barrier_init(&shared.barrier, 1);
    arch::barrier_init_fence();
  }
  arch::sync_threads();
  float d[32], sum[32] = {};
  int accumulated = 0;  // tiles in d
  for (int tile = 0; tile < tiles; ++tile) {
    if (thread == 0) {
      arch::barrier_arrive_expect_bytes(&shared.barrier, 2 * 64 * kTileBytes);
      arch::tile_load(shared.a, params.map[0], &shared.barrier, {0, tile * kTileBytes});
      arch::tile_load(shared.b, params.map[1], &shared.barrier, {0, tile * kTileBytes});
    }
    arch::barrier_wait(&shared.barrier, tile % 2);
    arch::wgmma_fence(d);
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      arch::wgmma<float8>(d, a.operand(Major::kK, step), b.operand(Major::kK, step), step > 0 || accumulated > 0);
    }
    arch::wgmma_commit();
    arch::wgmma_wait<0>(d);
    arch::sync_threads();  // the operands make room for the next tile
    if (++accumulated == promote || tile == tiles - 1) {
#pragma unroll
      for (int i = 0; i < 32; ++i) sum[i] += d[i];
      accumulated = 0;
    }
  }
  float* out = static_cast<float*>(params.output[0]);
  const int row = thread / 32 * 16 + thread % 32 / 4;
#pragma unroll
  for (int i = 0; i < 32; ++i) out[(row + i / 2 % 2 * 8) * 64 + i / 4 * 8 + thread % 4 * 2 + i % 2] = sum[i];
}

void float8_accumulation(const Arguments& arguments, const Stream& stream) {
  Params params = make_params(arguments, 2, 1, 1);
  const std::int64_t depth = arguments.inputs[0].shape.back();
  for (int i = 0; i < 2; ++i) {
    require_shape("inputs", arguments.inputs[i], {64, depth});
    require_dtype("inputs", arguments.inputs[i], Dtype::kFloat8);
    params.map[i] = make_tensor_map("inputs", arguments.inputs[i], {64, kTileBytes}, Swizzle::k128Bytes, stream.device);
  }
  require_valid(depth % kTileBytes == 0, "inputs", "a multiple of 128 along K", std::to_string(depth));
  params.value[1] = to_int("inputs", "tiles", depth / kTileBytes);
  arch::launch(&float8_accumulation_kernel, one_block(128, sizeof(AccumulationShared), stream), params);
}

}  // namespace aapt::probes
