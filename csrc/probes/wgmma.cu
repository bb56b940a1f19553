// SPDX-License-Identifier: Apache-2.0
// Probes of wgmma: one tile of 64 numbers along K.
#include "probes/probe.h"

namespace aapt::probes {

constexpr int kRows = 64, kDepth = 64, kSteps = kDepth / 16, kRowBytes = 2 * kDepth, kMostColumns = 256;

struct WgmmaShared {
  char a[kRows * kRowBytes];
  char b[kMostColumns * kRowBytes];
  arch::Barrier barrier;
};

// First of this thread's rows of an accumulator.
AAPT_DEVICE int accumulator_row() { return arch::thread_index() / 32 * 16 + arch::lane_index() / 4; }

// Writes accumulators of 64 rows to out[64, N].
template <int kCount>
AAPT_DEVICE void store_accumulators(const float (&d)[kCount], void* out) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int row = accumulator_row() + i / 2 % 2 * 8, column = i / 4 * 8 + arch::lane_index() % 4 * 2 + i % 2;
    static_cast<float*>(out)[row * 2 * kCount + column] = d[i];
  }
}

// ---- wgmma: A [64, 64], B [N, 64] or [64, N] of 16 bits -> float [64, N]; values: variant, swizzle, major of B (0: K,
// 1: MN), A in registers ----
// Variants: 1 the accumulators are read before the wait, 2 no wgmma_fence, 3 B is overwritten before the wait, 4 A in
// registers is overwritten before the wait, 5 a copy goes to B before the wait, 6 half of each warp issues wgmma_fence
// at another place; they exist in the emulation only.

// An operand in slabs as wide as the swizzle (16 bytes without one), each of `lines` rows of the tensor. K-major: the
// lines are rows M or N and the slabs follow each other along K; MN-major: the other way round.
struct Slabs {
  std::uint32_t address;
  int swizzle, lines;

  AAPT_DEVICE int width() const { return swizzle ? swizzle : 16; }
  AAPT_DEVICE int bytes() const { return lines * width(); }

  // The operand of step `step` of 16 numbers along K.
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

  // Starts the copies of so many slabs to `shared`, where this operand lies.
  AAPT_DEVICE void load(char* shared, const TensorMap& map, arch::Barrier* barrier, int slabs) const {
#pragma unroll 1
    for (int slab = 0; slab < slabs; ++slab) {
      arch::tile_load(shared + slab * bytes(), map, barrier, {0, slab * width() / 2});
    }
  }
};

template <class T, int kColumns, Major kMajorB, bool kRegisters>
AAPT_KERNEL void AAPT_LAUNCH_BOUNDS(128, 1) wgmma_kernel(AAPT_GRID_CONSTANT const Params params) {
  auto& shared = shared_struct<WgmmaShared>();
  const int swizzle = params.value[1];
  const Slabs a{arch::shared_address(shared.a), swizzle, kRows};
  const Slabs b{arch::shared_address(shared.b), swizzle, kMajorB == Major::kK ? kColumns : kDepth};
  if (arch::thread_index() == 0) {
    arch::barrier_init(&shared.barrier, 1);
    arch::barrier_init_fence();
    const int a_slabs = kRegisters ? 0 : kRowBytes / a.width();
    const int b_slabs = ((kMajorB == Major::kK ? kRowBytes : 2 * kColumns) + b.width() - 1) / b.width();
    arch::barrier_arrive_expect_bytes(&shared.barrier, a_slabs * a.bytes() + b_slabs * b.bytes());
    a.load(shared.a, params.map[0], &shared.barrier, a_slabs);
    b.load(shared.b, params.map[1], &shared.barrier, b_slabs);
  }
  arch::sync_threads();
  arch::barrier_wait(&shared.barrier, 0);

  std::uint32_t words[kSteps][4] = {};
  if constexpr (kRegisters) {
    const auto* rows = static_cast<const std::uint32_t*>(params.input[0]);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = accumulator_row() + i % 2 * 8, pair = step * 8 + arch::lane_index() % 4 + i / 2 * 4;
        words[step][i] = rows[row * (kDepth / 2) + pair];
      }
    }
  }
  float d[kColumns / 2];
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) d[i] = -1;
  MatrixDescriptor operand_a[kSteps], operand_b[kSteps];  // made before the fence: no branches after it
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    operand_a[step] = a.operand(Major::kK, step);
    operand_b[step] = b.operand(kMajorB, step);
  }
#ifdef AAPT_EMULATE  // the planted errors: a compiler for the GPU would see them and serialise every product
  const int variant = params.value[0];
  if (variant == 6 && arch::lane_index() < 16) {
    arch::wgmma_fence(d);
  } else if (variant != 2)
#endif
    arch::wgmma_fence(d);
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    if constexpr (kRegisters) {
      arch::wgmma<T, kMajorB>(d, words[step], operand_b[step], step > 0);
    } else {
      arch::wgmma<T, kMajorB>(d, operand_a[step], operand_b[step], step > 0);
    }
  }
  arch::wgmma_commit();
#ifdef AAPT_EMULATE
  const float early = d[0];
  if (variant == 3) {
    reinterpret_cast<std::uint32_t*>(shared.b)[arch::thread_index()] = 0;
    arch::fence_proxy_async();
    arch::sync_threads();
  }
  if (variant == 4) words[kSteps - 1][0] = 0;
  if (variant == 5 && arch::thread_index() == 0) {
    arch::barrier_arrive_expect_bytes(&shared.barrier, b.bytes());
    b.load(shared.b, params.map[1], &shared.barrier, 1);
  }
#endif
  arch::wgmma_wait<0>(d);
#ifdef AAPT_EMULATE
  if (variant == 1) d[0] = early;
#endif
  store_accumulators(d, params.output[0]);
}

template <class T, Major kMajorB, bool kRegisters>
void launch_wgmma(const Arguments& arguments, const Stream& stream) {
  Params params = make_params(arguments, 2, 1, 4);
  const Tensor &a = arguments.inputs[0], &b = arguments.inputs[1];
  const Swizzle swizzle = swizzle_of(params.value[1]);
  const std::int64_t columns = b.size(kMajorB == Major::kK ? 0 : 1);
  require_shape("inputs[0]", a, {kRows, kDepth});
  require_shape("inputs[1]", b, {kMajorB == Major::kK ? columns : kDepth, kMajorB == Major::kK ? kDepth : columns});
  const int width = swizzle == Swizzle::kNone ? 8 : static_cast<int>(swizzle) / 2;
  const auto map_of = [&](const char* argument, const Tensor& tensor) {
    return make_tensor_map(argument, tensor, {to_int(argument, "rows", tensor.size(0)), width}, swizzle, stream.device);
  };
  params.map[0] = map_of("inputs[0]", a);
  params.map[1] = map_of("inputs[1]", b);
  require_one_of("inputs[1]", "width", columns, {64, 96, 128, 192, 256});
  const auto kernel = columns == 64    ? &wgmma_kernel<T, 64, kMajorB, kRegisters>
                      : columns == 96  ? &wgmma_kernel<T, 96, kMajorB, kRegisters>
                      : columns == 128 ? &wgmma_kernel<T, 128, kMajorB, kRegisters>
                      : columns == 192 ? &wgmma_kernel<T, 192, kMajorB, kRegisters>
                                       : &wgmma_kernel<T, 256, kMajorB, kRegisters>;
  arch::launch(kernel, one_block(128, sizeof(WgmmaShared), stream), params);
}

template <class T>
void launch_wgmma_of(const Arguments& arguments, const Stream& stream) {
  const bool mn_major = arguments.values.at(2) != 0;
  if (arguments.values.at(3) != 0) {
    (mn_major ? launch_wgmma<T, Major::kMN, true> : launch_wgmma<T, Major::kK, true>)(arguments, stream);
  } else {
    (mn_major ? launch_wgmma<T, Major::kMN, false> : launch_wgmma<T, Major::kK, false>)(arguments, stream);
  }
}

void wgmma(const Arguments& arguments, const Stream& stream) {
  require_half("inputs[0]", arguments.inputs.at(0));
  const bool bf16 = arguments.inputs[0].dtype == Dtype::kBFloat16;
  (bf16 ? launch_wgmma_of<bfloat16> : launch_wgmma_of<float16>)(arguments, stream);
}

// ---- wgmma_written: A [64, 64], B [64, 64] in bfloat16 -> float [64, 64]; values: variant ----
// Threads write both operands to shared memory, by cp.async and by stores, swizzled. Variants: 1 no fence, 2 no
// barrier.

// out[64, 64] = A B^T for operands in shared memory.
AAPT_DEVICE void multiply(MatrixDescriptor a, MatrixDescriptor b, void* out) {
  float d[32];
  arch::wgmma_fence(d);
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    arch::wgmma<bfloat16>(d, a.moved(32 * step), b.moved(32 * step), step > 0);
  }
  arch::wgmma_commit();
  arch::wgmma_wait<0>(d);
  store_accumulators(d, out);
}

// Describes adjacent rows in shared memory, with the swizzle of their 128 bytes.
AAPT_DEVICE MatrixDescriptor describe_rows(const char* rows) {
  return make_matrix_descriptor(arch::shared_address(rows), Swizzle::k128Bytes, 0, 8 * kRowBytes);
}

AAPT_KERNEL void AAPT_LAUNCH_BOUNDS(128, 1) wgmma_written_kernel(AAPT_GRID_CONSTANT const Params params) {
  auto& shared = shared_struct<WgmmaShared>();
  const auto* from_a = static_cast<const Vector16*>(params.input[0]);
  const auto* from_b = static_cast<const Vector16*>(params.input[1]);
  for (int piece = arch::thread_index(); piece < 64 * 8; piece += 128) {
    const std::uint32_t to = swizzled(Swizzle::k128Bytes, 16 * piece);
    arch::cp_async_16(shared.a + to, from_a + piece, 16);
    *reinterpret_cast<Vector16*>(shared.b + to) = from_b[piece];
  }
  arch::cp_async_commit();
  arch::cp_async_wait<0>();
  if (params.value[0] != 1) arch::fence_proxy_async();
  if (params.value[0] != 2) arch::sync_threads();
  multiply(describe_rows(shared.a), describe_rows(shared.b), params.output[0]);
}

void require_rows(const char* argument, const Tensor& operand, std::int64_t rows) {
  require_shape(argument, operand, {rows, kDepth});
  require_dtype(argument, operand, Dtype::kBFloat16);
  require_dense(argument, operand);
}

void wgmma_written(const Arguments& arguments, const Stream& stream) {
  for (const Tensor& operand : arguments.inputs) require_rows("inputs", operand, 64);
  arch::launch(&wgmma_written_kernel, one_block(128, sizeof(WgmmaShared), stream), make_params(arguments, 2, 1, 1));
}

// ---- shifted_rows: patch [256, 64], B [64, 64] in bfloat16 -> float [64, 64] ----
// values: shift, pitch, pattern row of the descriptor. Row 8 g + r of A is row shift + g pitch + r of the patch, which
// lies swizzled in shared memory as one box: A's descriptor starts in the middle of the swizzle's pattern.
// bench/measure_hardware.py counts the shifts that give the right product.

struct ShiftedShared {
  char patch[256 * kRowBytes];
  char b[64 * kRowBytes];
  arch::Barrier barrier;
};

AAPT_KERNEL void AAPT_LAUNCH_BOUNDS(128, 1) shifted_rows_kernel(AAPT_GRID_CONSTANT const Params params) {
  auto& shared = shared_struct<ShiftedShared>();
  if (arch::thread_index() == 0) {
    arch::barrier_init(&shared.barrier, 1);
    arch::barrier_init_fence();
    arch::barrier_arrive_expect_bytes(&shared.barrier, sizeof shared.patch + sizeof shared.b);
    arch::tile_load(shared.patch, params.map[0], &shared.barrier, {0, 0});
    arch::tile_load(shared.b, params.map[1], &shared.barrier, {0, 0});
  }
  arch::sync_threads();
  arch::barrier_wait(&shared.barrier, 0);
  const std::uint32_t first_row = arch::shared_address(shared.patch) + kRowBytes * params.value[0];
  const auto a =
      make_matrix_descriptor(first_row, Swizzle::k128Bytes, 0, kRowBytes * params.value[1], params.value[2]);
  multiply(a, describe_rows(shared.b), params.output[0]);
}

void shifted_rows(const Arguments& arguments, const Stream& stream) {
  Params params = make_params(arguments, 2, 1, 3);
  const int last = params.value[0] + 7 * params.value[1] + 7;
  require_valid(params.value[0] >= 0 && last < 256, "values", "rows 0 to 255", std::to_string(last));
  require_rows("inputs[0]", arguments.inputs[0], 256);
  require_rows("inputs[1]", arguments.inputs[1], 64);
  params.map[0] = make_tensor_map("inputs[0]", arguments.inputs[0], {256, kDepth}, Swizzle::k128Bytes, stream.device);
  params.map[1] = make_tensor_map("inputs[1]", arguments.inputs[1], {64, kDepth}, Swizzle::k128Bytes, stream.device);
  arch::launch(&shifted_rows_kernel, one_block(128, sizeof(ShiftedShared), stream), params);
}

}  // namespace aapt::probes
