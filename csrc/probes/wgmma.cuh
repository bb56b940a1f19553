// SPDX-License-Identifier: Apache-2.0
// The body of the wgmma probes: d[64, N] = A[64, K] B[N, K]^T for one tile of 128 bytes along K.
#pragma once

#include "probes/probe.h"

namespace aapt::probes {

constexpr int kWgmmaRows = 64, kMostColumns = 256, kTileBytes = 128;
constexpr int kOperandBytes = 32 << 10;

struct WgmmaShared {
  char a[kOperandBytes / 4];
  char b[kOperandBytes];
  arch::Barrier barrier;
};

// An operand in slabs as wide as the swizzle (16 bytes without one), each of `lines` rows of the tensor. K-major: the
// lines are rows M or N and the slabs follow each other along K; MN-major: the other way round.
struct Slabs {
  std::uint32_t address;
  int swizzle, lines;

  AAPT_DEVICE int width() const { return swizzle ? swizzle : 16; }
  AAPT_DEVICE int bytes() const { return lines * width(); }

  // The operand of step `step` of 32 bytes along K (of 16 numbers).
  AAPT_DEVICE MatrixDescriptor operand(Major major, int step) const {
    const auto mode = static_cast<Swizzle>(swizzle);
    if (major == Major::kK) {
      const int column = 32 * step;
      const std::uint32_t at = address + column / width() * bytes() + column % width();
      return make_matrix_descriptor(at, mode, bytes(), 8 * width());
    }
    const std::uint32_t at = address + step * 16 * width();
    if (swizzle == 0) return make_matrix_descriptor(at, mode, 8 * width(), bytes());
    return make_matrix_descriptor(at, mode, bytes(), 8 * width());
  }
};

// value[0]: variant, value[1]: swizzle. Input 0 is A, needed for A in registers; map 0 is A, map 1 is B, with boxes of
// one slab. Variants: 1 the accumulators are read before the wait, 2 no wgmma_fence, 3 B is overwritten before the
// wait, 4 A in registers is overwritten before the wait; they exist in the emulation only.
template <class T, int kColumns, Major kMajorA, Major kMajorB, bool kRegisters>
AAPT_KERNEL void AAPT_LAUNCH_BOUNDS(128, 1) wgmma_kernel(AAPT_GRID_CONSTANT const Params params) {
  constexpr int kNumber = sizeof(T), kDepth = kTileBytes / kNumber, kSteps = kTileBytes / 32;
  auto& shared = shared_struct<WgmmaShared>();
  const int swizzle = params.value[1], thread = arch::thread_index();
#ifdef AAPT_EMULATE
  const int variant = params.value[0];
#endif
  const Slabs a{arch::shared_address(shared.a), swizzle, kMajorA == Major::kK ? kWgmmaRows : kDepth};
  const Slabs b{arch::shared_address(shared.b), swizzle, kMajorB == Major::kK ? kColumns : kDepth};
  if (thread == 0) {
    arch::barrier_init(&shared.barrier, 1);
    arch::barrier_init_fence();
  }
  arch::sync_threads();
  const auto slabs = [](const Slabs& operand, Major major, int rows) {
    const int bytes = (major == Major::kK ? kDepth : rows) * kNumber;
    return (bytes + operand.width() - 1) / operand.width();
  };
  if (thread == 0) {
    const int a_slabs = kRegisters ? 0 : slabs(a, kMajorA, kWgmmaRows), b_slabs = slabs(b, kMajorB, kColumns);
    arch::barrier_arrive_expect_bytes(&shared.barrier, a_slabs * a.bytes() + b_slabs * b.bytes());
#pragma unroll 1
    for (int slab = 0; slab < a_slabs; ++slab) {
      arch::tile_load(shared.a + slab * a.bytes(), params.map[0], &shared.barrier, {0, slab * a.width() / kNumber});
    }
#pragma unroll 1
    for (int slab = 0; slab < b_slabs; ++slab) {
      arch::tile_load(shared.b + slab * b.bytes(), params.map[1], &shared.barrier, {0, slab * b.width() / kNumber});
    }
  }
  arch::barrier_wait(&shared.barrier, 0);

  std::uint32_t words[kSteps][4] = {};
  const int row = thread / 32 * 16 + thread % 32 / 4;
  if constexpr (kRegisters) {
    const auto* rows = static_cast<const std::uint32_t*>(params.input[0]);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        words[step][i] = rows[(row + i % 2 * 8) * (kTileBytes / 4) + step * 8 + thread % 4 + i / 2 * 4];
      }
    }
  }
  float d[kColumns / 2];
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) d[i] = -1;
  MatrixDescriptor operand_a[kSteps], operand_b[kSteps];  // made before the fence: no branches after it
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    operand_a[step] = a.operand(kMajorA, step);
    operand_b[step] = b.operand(kMajorB, step);
  }
#ifdef AAPT_EMULATE  // the planted errors: a compiler for the GPU would see them and serialise every product
  if (variant != 2)
#endif
    arch::wgmma_fence(d);
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    if constexpr (kRegisters) {
      arch::wgmma<T, kMajorB>(d, words[step], operand_b[step], step > 0);
    } else {
      arch::wgmma<T, kMajorA, kMajorB>(d, operand_a[step], operand_b[step], step > 0);
    }
  }
  arch::wgmma_commit();
#ifdef AAPT_EMULATE
  const float early = d[0];
  if (variant == 3) {
    reinterpret_cast<std::uint32_t*>(shared.b)[thread] = 0;
    arch::fence_proxy_async();
    arch::sync_threads();
  }
  if (variant == 4) words[kSteps - 1][0] = 0;
#endif
  arch::wgmma_wait<0>(d);
#ifdef AAPT_EMULATE
  if (variant == 1) d[0] = early;
#endif
  float* out = static_cast<float*>(params.output[0]);
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) {
    out[(row + i / 2 % 2 * 8) * kColumns + i / 4 * 8 + thread % 4 * 2 + i % 2] = d[i];
  }
}

// Checks and starts it. A is [64, K] or, MN-major, [K, 64]; B likewise.
template <class T, Major kMajorA, Major kMajorB, bool kRegisters, int... kColumns>
void launch_wgmma(const Arguments& arguments, const Stream& stream) {
  constexpr int kDepth = kTileBytes / sizeof(T);
  const Tensor &a = arguments.inputs.at(0), &b = arguments.inputs.at(1);
  Params params = make_params(arguments, 2, 1, arguments.values.size());
  const Swizzle swizzle = swizzle_of(arguments.values.at(1));
  const int columns = to_int("inputs[1]", "columns", b.size(kMajorB == Major::kK ? 0 : 1));
  require_shape("inputs[0]", a, {kMajorA == Major::kK ? 64 : kDepth, kMajorA == Major::kK ? kDepth : 64});
  require_shape("inputs[1]", b, {kMajorB == Major::kK ? columns : kDepth, kMajorB == Major::kK ? kDepth : columns});
  const int width = (swizzle == Swizzle::kNone ? 16 : static_cast<int>(swizzle)) / static_cast<int>(sizeof(T));
  const auto map_of = [&](const char* argument, const Tensor& tensor) {
    return make_tensor_map(argument, tensor, {to_int(argument, "rows", tensor.size(0)), width}, swizzle, stream.device);
  };
  params.map[0] = map_of("inputs[0]", a);
  params.map[1] = map_of("inputs[1]", b);
  bool known = false;
  const auto start = [&](int width_of_kernel, void (*kernel)(Params)) {
    if (columns != width_of_kernel) return;
    known = true;
    arch::launch(kernel, one_block(128, sizeof(WgmmaShared), stream), params);
  };
  (start(kColumns, &wgmma_kernel<T, kColumns, kMajorA, kMajorB, kRegisters>), ...);
  require_supported(known, "inputs[1]", "a width of wgmma", std::to_string(columns));
}

}  // namespace aapt::probes
