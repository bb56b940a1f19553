// SPDX-License-Identifier: Apache-2.0
#include "emulate/self_test.h"

#include "common/arch.h"

namespace aapt::emulate {
namespace {

template <class Element>
void round_all(const Tensor& source, const Tensor& result) {
  for (std::int64_t i = 0; i < source.elements(); ++i) {
    result.as<Element>()[i] = {arch::round_to(Element{}, source.as<const float>()[i])};
  }
}

template <class Element>
void widen_all(const Tensor& source, const Tensor& result) {
  for (std::int64_t i = 0; i < source.elements(); ++i) {
    result.as<float>()[i] = arch::to_float(source.as<const Element>()[i]);
  }
}

void check(const Tensor& wide, const Tensor& half) {
  require_dtype("float32 numbers", wide, Dtype::kFloat32);
  require_half("half-precision numbers", half);
  require_shape("numbers", wide, {half.elements()});
  require_dense("float32 numbers", wide);
  require_dense("half-precision numbers", half);
}

struct BarrierParams {
  int threads_that_arrive;
};

AAPT_KERNEL void barrier_kernel(AAPT_GRID_CONSTANT const BarrierParams params) {
  if (arch::thread_index() < params.threads_that_arrive) arch::sync_threads();
}

struct CopyParams {
  const Vector16* source;  // [threads]
  Vector16* result;        // [threads]
  bool wait;
};

AAPT_KERNEL void copy_kernel(AAPT_GRID_CONSTANT const CopyParams params) {
  const int thread = arch::thread_index();
  auto* mine = reinterpret_cast<Vector16*>(arch::shared_memory()) + thread;
  arch::cp_async_16(mine, params.source + thread, 16);
  arch::cp_async_commit();
  if (params.wait) arch::cp_async_wait<0>();
  params.result[thread] = *mine;
}

struct ReversalParams {
  int* result;  // [threads]
  bool synchronise;
};

// Each thread reads what another one wrote.
AAPT_KERNEL void reversal_kernel(AAPT_GRID_CONSTANT const ReversalParams params) {
  const int thread = arch::thread_index();
  auto* numbers = reinterpret_cast<int*>(arch::shared_memory());
  numbers[thread] = thread;
  if (params.synchronise) arch::sync_threads();
  params.result[thread] = numbers[arch::block_size() - 1 - thread];
}

}  // namespace

void round_numbers(const Tensor& source, const Tensor& result) {
  check(source, result);
  (result.dtype == Dtype::kBFloat16 ? round_all<bfloat16> : round_all<float16>)(source, result);
}

void widen_numbers(const Tensor& source, const Tensor& result) {
  check(result, source);
  (source.dtype == Dtype::kBFloat16 ? widen_all<bfloat16> : widen_all<float16>)(source, result);
}

void run_barrier(int threads, int threads_that_arrive) {
  Launch how;
  how.threads = threads;
  arch::launch(&barrier_kernel, how, BarrierParams{threads_that_arrive});
}

void run_copy(const Tensor& source, const Tensor& result, bool wait) {
  require_16_byte_rows("source", source);
  require_16_byte_rows("result", result);
  require_shape("result", result, {source.elements()});
  Launch how;
  how.threads = static_cast<unsigned>(source.elements() * dtype_bytes(source.dtype) / 16);
  how.shared_bytes = how.threads * sizeof(Vector16);
  arch::launch(&copy_kernel, how, CopyParams{source.as<const Vector16>(), result.as<Vector16>(), wait});
}

void run_reversal(const Tensor& result, bool synchronise) {
  require_dtype("result", result, Dtype::kInt32);
  require_dense("result", result);
  Launch how;
  how.threads = static_cast<unsigned>(result.elements());
  how.shared_bytes = how.threads * sizeof(int);
  arch::launch(&reversal_kernel, how, ReversalParams{result.as<int>(), synchronise});
}

}  // namespace aapt::emulate
