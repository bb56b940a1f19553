// SPDX-License-Identifier: Apache-2.0
// Probes of arch_ptx.h.
#include "probes/probe.h"

namespace aapt::probes {

// ---- named_barrier: float [128] -> float [128]; values: variant ----
// Warps 1..3 write and arrive, warp 0 waits and copies everything; warps 2 and 3 also wait for each other. Variants: 1
// warp 0 does not wait, 2 the barrier is one for more threads than there are, 3 only warp 0 says so, 4 half of warp 0
// and half of warp 1 meet first, 5 the halves of warp 0 come to the barrier from two places, 6 warp 3 arrives twice.

struct NamedBarrierShared {
  float number[128];
  float partner[64];
};

AAPT_KERNEL void named_barrier_kernel(AAPT_GRID_CONSTANT const Params params) {
  auto& shared = shared_struct<NamedBarrierShared>();
  const int variant = params.value[0], thread = arch::thread_index(), warp = arch::warp_index();
  const int threads = variant == 2 || (variant == 3 && warp == 0) ? 160 : 128;
  shared.number[thread] = static_cast<const float*>(params.input[0])[thread];
  float* out = static_cast<float*>(params.output[0]);
  if (variant == 4 && warp < 2) {
    if (arch::lane_index() < 16) arch::named_barrier_sync(3, 32);
    arch::sync_warp();
  }
  if (warp == 0) {
    if (variant == 5 && arch::lane_index() < 16) {
      arch::named_barrier_sync(1, threads);
    } else if (variant != 1) {
      arch::named_barrier_sync(1, threads);
    }
    for (int i = thread; i < 64; i += 32) out[i] = shared.number[i];
  } else {
    if (warp >= 2) {
      shared.partner[thread - 64] = shared.number[thread];
      arch::named_barrier_sync(2, 64);
      out[thread] = shared.partner[(thread - 64) ^ 32];  // what the other warp wrote
    }
    arch::named_barrier_arrive(1, threads);
    if (variant == 6 && warp == 3) arch::named_barrier_arrive(1, threads);
  }
}

void named_barrier(const Arguments& arguments, const Stream& stream) {
  require_shape("inputs[0]", arguments.inputs.at(0), {128});
  arch::launch(&named_barrier_kernel, one_block(128, sizeof(NamedBarrierShared), stream),
               make_params(arguments, 1, 1, 1));
}

// ---- cp_async: int32 [2, 128, 4] -> int32 [2, 128, 4]; values: variant (1: no wait) ----
// Thread t copies t % 17 bytes of each of its two rows, in a group each.

AAPT_KERNEL void cp_async_kernel(AAPT_GRID_CONSTANT const Params params) {
  auto* rows = reinterpret_cast<Vector16*>(arch::shared_memory());  // [2, 128]
  const auto* from = static_cast<const Vector16*>(params.input[0]);
  auto* out = static_cast<Vector16*>(params.output[0]);
  const int thread = arch::thread_index();
  for (int group = 0; group < 2; ++group) {
    arch::cp_async_16(rows + 128 * group + thread, from + 128 * group + thread, thread % 17);
    arch::cp_async_commit();
  }
  if (params.value[0] != 1) arch::cp_async_wait<1>();
  out[thread] = rows[thread];
  if (params.value[0] != 1) arch::cp_async_wait<0>();
  out[128 + thread] = rows[128 + thread];
}

void cp_async(const Arguments& arguments, const Stream& stream) {
  require_shape("inputs[0]", arguments.inputs.at(0), {2, 128, 4});
  arch::launch(&cp_async_kernel, one_block(128, 2 * 128 * 16, stream), make_params(arguments, 1, 1, 1));
}

// ---- block_counter: int32 [1] += blocks; values: blocks ----
// Each block reads the number, waits for its own threads and writes one more: what blocks that run at the same time
// must not do.

AAPT_KERNEL void block_counter_kernel(AAPT_GRID_CONSTANT const Params params) {
  int* count = static_cast<int*>(params.output[0]);
  const int before = *count;
  arch::sync_threads();
  if (arch::thread_index() == 0) *count = before + 1;
}

void block_counter(const Arguments& arguments, const Stream& stream) {
  require_shape("outputs[0]", arguments.outputs.at(0), {1});
  Launch how = one_block(64, 0, stream);
  how.grid.x = static_cast<unsigned>(arguments.values.at(0));
  arch::launch(&block_counter_kernel, how, make_params(arguments, 0, 1, 1));
}

// ---- half_precision: float [n] -> float [5, n]: exp2, log2, rounded to bfloat16, to float16, as the high half ----

AAPT_KERNEL void half_precision_kernel(AAPT_GRID_CONSTANT const Params params) {
  const int count = params.value[0];
  float* out = static_cast<float*>(params.output[0]);
  for (int i = arch::thread_index(); i < count; i += arch::block_size()) {
    const float x = static_cast<const float*>(params.input[0])[i];
    out[i] = arch::exp2_approx(x);
    out[count + i] = arch::log2_approx(x);
    out[2 * count + i] = arch::to_float(bfloat16{static_cast<std::uint16_t>(arch::pack<bfloat16>(x, 1.0f))});
    out[3 * count + i] = arch::to_float(float16{static_cast<std::uint16_t>(arch::pack<float16>(x, 1.0f))});
    out[4 * count + i] = arch::to_float(float16{static_cast<std::uint16_t>(arch::pack<float16>(1.0f, x) >> 16)});
  }
}

void half_precision(const Arguments& arguments, const Stream& stream) {
  require_shape("inputs[0]", arguments.inputs.at(0), {arguments.values.at(0)});
  arch::launch(&half_precision_kernel, one_block(128, 0, stream), make_params(arguments, 1, 1, 1));
}

}  // namespace aapt::probes
