// SPDX-License-Identifier: Apache-2.0
// Probes of wgmma with 16-bit operands.
#include "probes/wgmma.cuh"

namespace aapt::probes {

// ---- wgmma_half: A, B of 16 bits -> float [64, N] ----
// values: variant, swizzle, major of A, major of B (0: K, 1: MN), A in registers. All widths for both operands K-major
// or both MN-major, 64 and 192 for the mixed ones.

template <class T>
void start_half(const Arguments& arguments, const Stream& stream) {
  const bool a_mn = arguments.values[2] != 0, b_mn = arguments.values[3] != 0;
  constexpr Major kK = Major::kK, kMN = Major::kMN;
  if (arguments.values[4] != 0) {
    (b_mn ? launch_wgmma<T, kK, kMN, true, 8, 16, 32, 64, 96, 128, 192, 256>
          : launch_wgmma<T, kK, kK, true, 8, 16, 32, 64, 96, 128, 192, 256>)(arguments, stream);
  } else if (a_mn == b_mn) {
    (b_mn ? launch_wgmma<T, kMN, kMN, false, 8, 16, 32, 64, 96, 128, 192, 256>
          : launch_wgmma<T, kK, kK, false, 8, 16, 32, 64, 96, 128, 192, 256>)(arguments, stream);
  } else {
    (b_mn ? launch_wgmma<T, kK, kMN, false, 64, 192> : launch_wgmma<T, kMN, kK, false, 64, 192>)(arguments, stream);
  }
}

void wgmma_half(const Arguments& arguments, const Stream& stream) {
  require_half("inputs[0]", arguments.inputs.at(0));
  require_valid(arguments.values.size() == 5, "values", "5", std::to_string(arguments.values.size()));
  (arguments.inputs[0].dtype == Dtype::kBFloat16 ? start_half<bfloat16> : start_half<float16>)(arguments, stream);
}

// ---- wgmma_written: A [64, 64], B [64, 64] in bfloat16 -> float [64, 64]; values: variant ----
// Threads write both operands to shared memory, by cp.async and by stores, swizzled. Variants: 1 no fence, 2 no
// barrier.

AAPT_KERNEL void AAPT_LAUNCH_BOUNDS(128, 1) wgmma_written_kernel(AAPT_GRID_CONSTANT const Params params) {
  auto& shared = shared_struct<WgmmaShared>();
  const int variant = params.value[0], thread = arch::thread_index();
  const auto* from_a = static_cast<const Vector16*>(params.input[0]);
  const auto* from_b = static_cast<const Vector16*>(params.input[1]);
  for (int piece = thread; piece < 64 * 8; piece += 128) {
    const std::uint32_t to = swizzled(Swizzle::k128Bytes, 16 * piece);
    arch::cp_async_16(shared.a + to, from_a + piece, 16);
    *reinterpret_cast<Vector16*>(shared.b + to) = from_b[piece];
  }
  arch::cp_async_commit();
  arch::cp_async_wait<0>();
  if (variant != 1) arch::fence_proxy_async();
  if (variant != 2) arch::sync_threads();
  const Slabs a{arch::shared_address(shared.a), 128, 64}, b{arch::shared_address(shared.b), 128, 64};
  float d[32];
  arch::wgmma_fence(d);
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    arch::wgmma<bfloat16>(d, a.operand(Major::kK, step), b.operand(Major::kK, step), step > 0);
  }
  arch::wgmma_commit();
  arch::wgmma_wait<0>(d);
  float* out = static_cast<float*>(params.output[0]);
  const int row = thread / 32 * 16 + thread % 32 / 4;
#pragma unroll
  for (int i = 0; i < 32; ++i) out[(row + i / 2 % 2 * 8) * 64 + i / 4 * 8 + thread % 4 * 2 + i % 2] = d[i];
}

void wgmma_written(const Arguments& arguments, const Stream& stream) {
  for (const Tensor& operand : arguments.inputs) {
    require_shape("inputs", operand, {64, 64});
    require_dtype("inputs", operand, Dtype::kBFloat16);
    require_dense("inputs", operand);
  }
  arch::launch(&wgmma_written_kernel, one_block(128, sizeof(WgmmaShared), stream), make_params(arguments, 2, 1, 1));
}

}  // namespace aapt::probes
