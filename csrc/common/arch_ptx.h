// SPDX-License-Identifier: Apache-2.0
// aapt::arch in PTX, from compute capability 8.0 on. Every name here has an emulated twin in emulate/arch_ptx.h.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "common/launch_cuda.h"
#include "common/types.h"

#define AAPT_DEVICE __device__ __forceinline__
#define AAPT_KERNEL __global__
#define AAPT_GRID_CONSTANT __grid_constant__
#define AAPT_LAUNCH_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)

namespace aapt::arch {

// ---- who and where ----

AAPT_DEVICE int thread_index() { return threadIdx.x; }
AAPT_DEVICE int block_size() { return blockDim.x; }
AAPT_DEVICE int lane_index() { return threadIdx.x % 32; }
AAPT_DEVICE int warp_index() { return __shfl_sync(~0u, threadIdx.x / 32, 0); }  // uniform, and known to be
AAPT_DEVICE Index3 block_index() { return {blockIdx.x, blockIdx.y, blockIdx.z}; }

// The block's dynamic shared memory, aligned to 1024 bytes.
AAPT_DEVICE char* shared_memory() {
  extern __shared__ __align__(1024) char memory[];
  return memory;
}

AAPT_DEVICE std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

// ---- barriers and exchange ----

AAPT_DEVICE void sync_threads() { __syncthreads(); }
AAPT_DEVICE void sync_warp() { __syncwarp(); }

// Barrier `id` (1..15; 0 is sync_threads) of `threads` threads, a multiple of 32.
AAPT_DEVICE void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

AAPT_DEVICE void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// All 32 lanes take part.
template <class T>
AAPT_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(~0u, value, mask);
}

// True where it is true in all 32 lanes, which all take part.
AAPT_DEVICE bool all_lanes(bool value) { return __all_sync(~0u, value); }

// ---- arithmetic ----

AAPT_DEVICE float exp2_approx(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

AAPT_DEVICE float log2_approx(float x) {
  float result;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

AAPT_DEVICE float rsqrt_approx(float x) {
  float result;
  asm("rsqrt.approx.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

AAPT_DEVICE float reciprocal_approx(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

AAPT_DEVICE std::uint32_t multiply_high(std::uint32_t a, std::uint32_t b) { return __umulhi(a, b); }

AAPT_DEVICE float round_to_float(std::uint32_t x) { return __uint2float_rn(x); }

// log(x), and cos(pi x) and sin(pi x), in double: the noise has to be the same numbers everywhere.
AAPT_DEVICE double log_double(double x) { return log(x); }
AAPT_DEVICE void sincospi_double(double x, double* sin_result, double* cos_result) {
  sincospi(x, sin_result, cos_result);
}

// ---- half precision: two numbers in a word, the first one in the low half, rounded to nearest even ----

template <class T>
AAPT_DEVICE std::uint32_t pack(float low, float high);

template <>
AAPT_DEVICE std::uint32_t pack<bfloat16>(float low, float high) {
  std::uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

template <>
AAPT_DEVICE std::uint32_t pack<float16>(float low, float high) {
  std::uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

AAPT_DEVICE float to_float(bfloat16 x) { return __uint_as_float(static_cast<std::uint32_t>(x.bits) << 16); }

AAPT_DEVICE float to_float(float16 x) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x.bits));
  return result;
}

// ---- 16 bytes at an address that is a multiple of 16 ----

// Loads memory that stays as it is while the kernel runs: such loads may move before stores to other places.
AAPT_DEVICE Vector16 load_16(const void* global) {
  Vector16 vector;
  asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(vector.word[0]), "=r"(vector.word[1]), "=r"(vector.word[2]), "=r"(vector.word[3])
      : "l"(global));
  return vector;
}

AAPT_DEVICE void store_16(void* global, const Vector16& vector) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(global), "r"(vector.word[0]), "r"(vector.word[1]),
               "r"(vector.word[2]), "r"(vector.word[3])
               : "memory");
}

AAPT_DEVICE std::uint32_t bits_of_float(float x) { return __float_as_uint(x); }
AAPT_DEVICE float float_of_bits(std::uint32_t bits) { return __uint_as_float(bits); }

// ---- asynchronous copies to shared memory ----

// Copies the first `valid_bytes` of 16 bytes and fills the rest with zeros; 0 reads nothing.
AAPT_DEVICE void cp_async_16(void* shared, const void* global, int valid_bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid_bytes)
               : "memory");
}

AAPT_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most kPending of this thread's groups are on their way.
template <int kPending>
AAPT_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- tensor cores, one warp ----

// Four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8. Lane l receives the
// elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 of matrix i in words[i].
AAPT_DEVICE void ldmatrix(std::uint32_t (&words)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(row))
               : "memory");
}

// ldmatrix for the transposed matrices: rows in memory are columns in the result.
AAPT_DEVICE void ldmatrix_transposed(std::uint32_t (&words)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(row))
               : "memory");
}

// d[16, 8] += a[16, 16] b[16, 8] in the fragment layouts of mma.m16n8k16, accumulated in float.
template <class T>
AAPT_DEVICE void mma_16x8x16(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1);

template <>
AAPT_DEVICE void mma_16x8x16<bfloat16>(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                       std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
AAPT_DEVICE void mma_16x8x16<float16>(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                      std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- host side ----

// Throws std::runtime_error when the launch fails.
template <class Params>
void launch(void (*kernel)(Params), const Launch& how, const Params& params) {
  static_assert(sizeof(Params) <= 4096, "what every driver passes to a kernel");
  launch_kernel(reinterpret_cast<const void*>(kernel), how, &params);
}

}  // namespace aapt::arch
