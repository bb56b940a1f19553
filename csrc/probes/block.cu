// SPDX-License-Identifier: Apache-2.0
// Probes of barriers in shared memory, bulk copies, clusters and the small Hopper instructions.
#include "probes/probe.h"

namespace aapt::probes {

// ---- barrier_ring: int32 [n, 32] -> int32 [n, 32], 3 x + 1; values: n, variant ----
// Warp 0 puts rows into a ring of two stages, warp 1 takes them out. Variants: 1 the consumer does not wait, 2 the
// producer does not wait, 3 arrivals of the consumer as well, 4 a barrier without barrier_init, 5 a barrier
// written over, 6 a consumer that never arrives.

struct RingShared {
  int row[2][32];
  arch::Barrier full[2], empty[2], unknown;
};

AAPT_KERNEL void barrier_ring_kernel(AAPT_GRID_CONSTANT const Params params) {
  auto& shared = shared_struct<RingShared>();
  const int rows = params.value[0], variant = params.value[1], lane = arch::lane_index();
  if (arch::thread_index() == 0) {
    for (int stage = 0; stage < 2; ++stage) {
      arch::barrier_init(&shared.full[stage], 32);
      arch::barrier_init(&shared.empty[stage], 1);
    }
    arch::barrier_init_fence();
    if (variant == 5) shared.full[0].state = 1;
  }
  arch::sync_threads();
  for (int i = 0; i < rows; ++i) {
    const int stage = i % 2, round = i / 2;
    if (arch::warp_index() == 0) {
      if (variant != 2) arch::barrier_wait(&shared.empty[stage], (round & 1) ^ 1);
      shared.row[stage][lane] = 3 * static_cast<const int*>(params.input[0])[32 * i + lane];
      arch::barrier_arrive(&shared.full[stage]);
    } else {
      if (variant == 3) arch::barrier_arrive(&shared.full[stage]);
      if (variant == 4) arch::barrier_wait(&shared.unknown, 0);
      if (variant != 1) arch::barrier_wait(&shared.full[stage], round & 1);
      static_cast<int*>(params.output[0])[32 * i + lane] = shared.row[stage][lane] + 1;
      arch::sync_warp();
      if (lane == 0 && variant != 6) arch::barrier_arrive(&shared.empty[stage]);
    }
  }
}

void barrier_ring(const Arguments& arguments, const Stream& stream) {
  require_shape("inputs[0]", arguments.inputs.at(0), {arguments.values.at(0), 32});
  arch::launch(&barrier_ring_kernel, one_block(64, sizeof(RingShared), stream), make_params(arguments, 1, 1, 2));
}

// ---- bulk_copy: int32 [n, 256] -> int32 [n, 256]; values: n, variant ----
// Variants: 1 no wait, 2 one arrival too many.
// Rows arrive one after the other on one barrier, which is told about each half of the bytes separately.

struct BulkShared {
  int row[256];
  arch::Barrier barrier;
};

AAPT_KERNEL void bulk_copy_kernel(AAPT_GRID_CONSTANT const Params params) {
  auto& shared = shared_struct<BulkShared>();
  const int thread = arch::thread_index();
  if (thread == 0) {
    arch::barrier_init(&shared.barrier, 1);
    arch::barrier_init_fence();
  }
  arch::sync_threads();
  for (int i = 0; i < params.value[0]; ++i) {
    const int* row = static_cast<const int*>(params.input[0]) + 256 * i;
    if (thread == 0) {
      arch::barrier_expect_bytes(&shared.barrier, 512);
      arch::barrier_arrive_expect_bytes(&shared.barrier, 512);
      if (params.value[1] == 2) arch::barrier_arrive(&shared.barrier);
      arch::bulk_load(shared.row, row, 1024, &shared.barrier);
    }
    if (params.value[1] != 1) arch::barrier_wait(&shared.barrier, i % 2);
    static_cast<int*>(params.output[0])[256 * i + thread] = shared.row[thread];
    arch::barrier_wait(&shared.barrier, i % 2);
    arch::sync_threads();
  }
}

void bulk_copy(const Arguments& arguments, const Stream& stream) {
  require_shape("inputs[0]", arguments.inputs.at(0), {arguments.values.at(0), 256});
  arch::launch(&bulk_copy_kernel, one_block(256, sizeof(BulkShared), stream), make_params(arguments, 1, 1, 2));
}

// ---- cluster_exchange: int32 [2 c, 128] -> int32 [2 c, 3, 128] for c clusters of two blocks; values: variant ----
// Each block reads its neighbour's row (words, then 16 bytes at once), and what the neighbour has sent it. Variants: 1
// no barrier of the cluster, 2 no wait for what was sent, 3 a block may end before its neighbour.

struct ExchangeShared {
  std::uint32_t own[128];
  Vector16 sent[32];
  arch::Barrier barrier;
};

AAPT_KERNEL void cluster_exchange_kernel(AAPT_GRID_CONSTANT const Params params) {
  auto& shared = shared_struct<ExchangeShared>();
  const int variant = params.value[0], thread = arch::thread_index(), block = arch::block_index().x;
  const int other = (arch::cluster_rank() + 1) % arch::cluster_size();
  shared.own[thread] = static_cast<const std::uint32_t*>(params.input[0])[128 * block + thread];
  if (thread == 0) {
    arch::barrier_init(&shared.barrier, 32);
    arch::barrier_init_fence();
  }
  if (variant != 1) {
    arch::cluster_arrive();
    arch::cluster_wait();
  }
  auto* out = static_cast<std::uint32_t*>(params.output[0]) + 3 * 128 * block;
  out[thread] = arch::cluster_load(arch::cluster_address(&shared.own[thread], other));
  if (thread < 32) {
    const Vector16 four = arch::cluster_load_16(arch::cluster_address(&shared.own[4 * thread], other));
    for (int i = 0; i < 4; ++i) out[128 + 4 * thread + i] = four.word[i];
    // To the neighbour: the first two words one by one, the rest at once; its barrier counts 32 arrivals.
    Vector16 doubled;
    for (int i = 0; i < 4; ++i) doubled.word[i] = 2 * shared.own[4 * thread + i];
    arch::cluster_store_16(arch::cluster_address(&shared.sent[thread], other), doubled);
    arch::cluster_store(arch::cluster_address(&shared.sent[thread].word[1], other), doubled.word[1] + 1);
    arch::barrier_arrive_remote(&shared.barrier, other);
  }
  if (variant != 2) arch::barrier_wait_cluster(&shared.barrier, 0);
  out[256 + thread] = shared.sent[thread / 4].word[thread % 4];
  if (variant != 3) arch::cluster_sync();  // stay until the neighbour has read
}

void cluster_exchange(const Arguments& arguments, const Stream& stream) {
  require_shape("inputs[0]", arguments.inputs.at(0), {kAnySize, 128});
  Launch how = one_block(128, sizeof(ExchangeShared), stream);
  how.grid.x = static_cast<unsigned>(arguments.inputs[0].size(0));
  how.cluster = 2;
  arch::launch(&cluster_exchange_kernel, how, make_params(arguments, 1, 1, 1));
}

// ---- matrix_store: int32 [32, 4] words of lanes -> 16-bit [2, 4, 8, 8], as they are and transposed ----

AAPT_KERNEL void matrix_store_kernel(AAPT_GRID_CONSTANT const Params params) {
  auto* matrices = reinterpret_cast<Vector16*>(arch::shared_memory());
  const int lane = arch::lane_index();
  std::uint32_t words[4];
  for (int i = 0; i < 4; ++i) words[i] = static_cast<const std::uint32_t*>(params.input[0])[4 * lane + i];
  arch::stmatrix(matrices + lane, words);
  arch::stmatrix_transposed(matrices + 32 + lane, words);
  arch::sync_warp();
  for (int i = 0; i < 2; ++i) static_cast<Vector16*>(params.output[0])[32 * i + lane] = matrices[32 * i + lane];
}

void matrix_store(const Arguments& arguments, const Stream& stream) {
  require_shape("inputs[0]", arguments.inputs.at(0), {32, 4});
  arch::launch(&matrix_store_kernel, one_block(32, 64 * 16, stream), make_params(arguments, 1, 1, 0));
}

// ---- float8_conversion: float [n, 4] -> float [n, 4] rounded to e4m3, int32 [n] packed; values: n ----

AAPT_KERNEL void float8_conversion_kernel(AAPT_GRID_CONSTANT const Params params) {
  for (int i = arch::thread_index(); i < params.value[0]; i += arch::block_size()) {
    const float* x = static_cast<const float*>(params.input[0]) + 4 * i;
    const std::uint32_t word = arch::pack_float8(x[0], x[1], x[2], x[3]);
    static_cast<std::uint32_t*>(params.output[1])[i] = word;
    for (int j = 0; j < 4; ++j) {
      static_cast<float*>(params.output[0])[4 * i + j] =
          arch::to_float(float8{static_cast<std::uint8_t>(word >> 8 * j)});
    }
  }
}

void float8_conversion(const Arguments& arguments, const Stream& stream) {
  require_shape("inputs[0]", arguments.inputs.at(0), {arguments.values.at(0), 4});
  arch::launch(&float8_conversion_kernel, one_block(128, 0, stream), make_params(arguments, 1, 2, 1));
}

// ---- elect: -> int32 [2, 128], 1 in the lane that was elected, asked twice ----

AAPT_KERNEL void elect_kernel(AAPT_GRID_CONSTANT const Params params) {
  int* out = static_cast<int*>(params.output[0]);
  out[arch::thread_index()] = arch::elect_one();
  out[128 + arch::thread_index()] = arch::elect_one();
}

void elect(const Arguments& arguments, const Stream& stream) {
  arch::launch(&elect_kernel, one_block(128, 0, stream), make_params(arguments, 0, 1, 0));
}

// ---- early_start: int32 [128 b] -> int32 [128 b], 2 x + 1 by two kernels, the second of which may start early ----

AAPT_KERNEL void first_kernel(AAPT_GRID_CONSTANT const Params params) {
  arch::let_next_kernel_start();
  const int i = 128 * arch::block_index().x + arch::thread_index();
  static_cast<int*>(params.output[0])[i] = 2 * static_cast<const int*>(params.input[0])[i];
}

AAPT_KERNEL void second_kernel(AAPT_GRID_CONSTANT const Params params) {
  arch::wait_for_earlier_kernels();
  static_cast<int*>(params.output[0])[128 * arch::block_index().x + arch::thread_index()] += 1;
}

void early_start(const Arguments& arguments, const Stream& stream) {
  const Params params = make_params(arguments, 1, 1, 0);
  Launch how = one_block(128, 0, stream);
  how.grid.x = static_cast<unsigned>(arguments.inputs[0].elements() / 128);
  arch::launch(&first_kernel, how, params);
  how.starts_early = true;
  arch::launch(&second_kernel, how, params);
}

}  // namespace aapt::probes
