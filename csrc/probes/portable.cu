// SPDX-License-Identifier: Apache-2.0
// Probes of arch_ptx.h.
#include "probes/probe.h"

namespace aapt::probes {

// ---- exchange: int32 [128] -> int32 [2, 128], shuffle from lane (5 lane + 3) % 32 and shuffle_xor; values: mask ----

AAPT_KERNEL void exchange_kernel(AAPT_GRID_CONSTANT const Params params) {
  const int thread = arch::thread_index(), lane = arch::lane_index();
  const int value = static_cast<const int*>(params.input[0])[thread];
  int* out = static_cast<int*>(params.output[0]);
  out[thread] = arch::shuffle(value, (5 * lane + 3) % 32);
  out[arch::block_size() + thread] = arch::shuffle_xor(value, params.value[0]);
}

void exchange(const Arguments& arguments, const Stream& stream) {
  require_shape("inputs[0]", arguments.inputs.at(0), {128});
  arch::launch(&exchange_kernel, one_block(128, 0, stream), make_params(arguments, 1, 1, 1));
}

// ---- named_barrier: float [128] -> float [128]; values: variant (1: warp 0 does not wait) ----
// Warps 1..3 write and arrive, warp 0 waits and copies everything; warps 2 and 3 also wait for each other.

struct NamedBarrierShared {
  float number[128];
  float partner[64];
};

AAPT_KERNEL void named_barrier_kernel(AAPT_GRID_CONSTANT const Params params) {
  auto& shared = shared_struct<NamedBarrierShared>();
  const int thread = arch::thread_index(), warp = arch::warp_index();
  shared.number[thread] = static_cast<const float*>(params.input[0])[thread];
  float* out = static_cast<float*>(params.output[0]);
  if (warp == 0) {
    if (params.value[0] != 1) arch::named_barrier_sync(1, 128);
    for (int i = thread; i < 64; i += 32) out[i] = shared.number[i];
  } else {
    if (warp >= 2) {
      shared.partner[thread - 64] = shared.number[thread];
      arch::named_barrier_sync(2, 64);
      out[thread] = shared.partner[(thread - 64) ^ 32];  // what the other warp wrote
    }
    arch::named_barrier_arrive(1, 128);
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

// ---- ldmatrix: 16-bit [4, 8, 8] -> int32 [2, 32, 4], as it is and transposed ----

AAPT_KERNEL void ldmatrix_kernel(AAPT_GRID_CONSTANT const Params params) {
  auto* matrices = reinterpret_cast<Vector16*>(arch::shared_memory());  // row r of matrix m at 8 m + r
  const int lane = arch::lane_index();
  matrices[lane] = static_cast<const Vector16*>(params.input[0])[lane];
  arch::sync_warp();
  std::uint32_t words[4];
  auto* out = static_cast<std::uint32_t*>(params.output[0]) + 4 * lane;
  arch::ldmatrix(words, matrices + lane);
  for (int i = 0; i < 4; ++i) out[i] = words[i];
  arch::ldmatrix_transposed(words, matrices + lane);
  for (int i = 0; i < 4; ++i) out[128 + i] = words[i];
}

void ldmatrix(const Arguments& arguments, const Stream& stream) {
  require_shape("inputs[0]", arguments.inputs.at(0), {4, 8, 8});
  arch::launch(&ldmatrix_kernel, one_block(32, 32 * 16, stream), make_params(arguments, 1, 1, 0));
}

// ---- mma: a [16, 16], b [8, 16] of 16 bits, c float [16, 8] -> float [16, 8], c + a b^T ----

template <class T>
AAPT_KERNEL void mma_kernel(AAPT_GRID_CONSTANT const Params params) {
  const int lane = arch::lane_index(), row = lane / 4, column = lane % 4 * 2;
  const auto pair = [](const void* matrix, int r, int k) {  // two numbers from a row of 16
    return static_cast<const std::uint32_t*>(matrix)[(16 * r + k) / 2];
  };
  const std::uint32_t a[4] = {pair(params.input[0], row, column), pair(params.input[0], row + 8, column),
                              pair(params.input[0], row, column + 8), pair(params.input[0], row + 8, column + 8)};
  const std::uint32_t b0 = pair(params.input[1], row, column), b1 = pair(params.input[1], row, column + 8);
  const float* c = static_cast<const float*>(params.input[2]);
  float* out = static_cast<float*>(params.output[0]);
  float d[4];
  for (int i = 0; i < 4; ++i) d[i] = c[8 * (row + i / 2 * 8) + column + i % 2];
  arch::mma_16x8x16<T>(d, a, b0, b1);
  for (int i = 0; i < 4; ++i) out[8 * (row + i / 2 * 8) + column + i % 2] = d[i];
}

void mma(const Arguments& arguments, const Stream& stream) {
  require_shape("inputs[0]", arguments.inputs.at(0), {16, 16});
  require_half("inputs[0]", arguments.inputs[0]);
  const bool bf16 = arguments.inputs[0].dtype == Dtype::kBFloat16;
  arch::launch(bf16 ? &mma_kernel<bfloat16> : &mma_kernel<float16>, one_block(32, 0, stream),
               make_params(arguments, 3, 1, 0));
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

// ---- arithmetic: int64 [n] -> int64 [5, n]: multiply_high of the halves, round_to_float of the low half, and the bits
// of log_double, sin and cos (sincospi_double) of low half / 2^31 ----

union DoubleBits {
  double number;
  std::int64_t bits;
};

AAPT_KERNEL void arithmetic_kernel(AAPT_GRID_CONSTANT const Params params) {
  const int count = params.value[0];
  auto* out = static_cast<std::int64_t*>(params.output[0]);
  for (int i = arch::thread_index(); i < count; i += arch::block_size()) {
    const auto word = static_cast<std::uint64_t>(static_cast<const std::int64_t*>(params.input[0])[i]);
    const auto low = static_cast<std::uint32_t>(word), high = static_cast<std::uint32_t>(word >> 32);
    const double x = low / 2147483648.0;
    DoubleBits logarithm, sine, cosine;
    logarithm.number = arch::log_double(x);
    arch::sincospi_double(x, &sine.number, &cosine.number);
    out[i] = arch::multiply_high(low, high);
    out[count + i] = static_cast<std::int64_t>(arch::round_to_float(low));
    out[2 * count + i] = logarithm.bits;
    out[3 * count + i] = sine.bits;
    out[4 * count + i] = cosine.bits;
  }
}

void arithmetic(const Arguments& arguments, const Stream& stream) {
  require_shape("inputs[0]", arguments.inputs.at(0), {arguments.values.at(0)});
  arch::launch(&arithmetic_kernel, one_block(128, 0, stream), make_params(arguments, 1, 1, 1));
}

}  // namespace aapt::probes
