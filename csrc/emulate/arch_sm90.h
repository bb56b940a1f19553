// SPDX-License-Identifier: Apache-2.0
// aapt::arch on the emulated machine: the twins of common/arch_sm90.h and common/arch_wgmma.h, which document them.
#pragma once

#include <cstdint>
#include <cstring>
#include <iterator>
#include <type_traits>
#include <vector>

#include "common/matrix_descriptor.h"
#include "common/tensor_map.h"
#include "emulate/arch_ptx.h"
#include "emulate/tile_copy.h"
#include "emulate/wgmma.h"

namespace aapt::arch {

// ---- barriers in shared memory ----

struct Barrier {
  std::uint64_t state;
};

inline void barrier_init(Barrier* barrier, int arrivals) { emulate::init_barrier(barrier, arrivals); }
inline void barrier_init_fence() { emulate::fence_barriers(); }

inline void barrier_arrive(Barrier* barrier) { emulate::arrive(barrier, 0, "barrier_arrive"); }

inline void barrier_arrive_expect_bytes(Barrier* barrier, int bytes) {
  emulate::arrive(barrier, bytes, "barrier_arrive_expect_bytes");
}

inline void barrier_release_remote(Barrier* barrier, int rank) { emulate::arrive_remote(barrier, rank); }
inline void barrier_wait(Barrier* barrier, int parity) { emulate::wait_for_phase(barrier, parity); }
inline void barrier_wait_bounded(Barrier* barrier, int parity) { barrier_wait(barrier, parity); }

inline void fence_proxy_async() { machine().block().shared.fence(machine().thread().index); }

// ---- the copy engine ----

inline void prefetch_map(const TensorMap&) {}

// The hardware counts dimensions from the dense one.
template <int kRank>
std::vector<int> reversed(const int (&first)[kRank]) {
  return {std::reverse_iterator<const int*>(first + kRank), std::reverse_iterator<const int*>(first)};
}

template <int kRank>
void tile_load(void* shared, const TensorMap& map, Barrier* barrier, const int (&first)[kRank]) {
  emulate::start_tile_load(shared, map, barrier, reversed(first), 1u << machine().block().rank);
}

template <int kRank>
void tile_load_multicast(void* shared, const TensorMap& map, Barrier* barrier, const int (&first)[kRank],
                         std::uint16_t blocks) {
  emulate::start_tile_load(shared, map, barrier, reversed(first), blocks);
}

template <int kRank>
void tile_store(const TensorMap& map, const void* shared, const int (&first)[kRank]) {
  emulate::start_tile_store(map, shared, reversed(first));
}

inline void store_commit() { emulate::commit_stores(); }

template <int kPending>
void store_wait_read() {
  emulate::wait_for_stores(kPending);
}

// ---- one lane ----

inline bool elect_one() {
  const int nothing = 0;
  machine().collective("elect_one", &nothing, sizeof nothing);
  return lane_index() == machine().elected_lane();
}

// ---- clusters ----

inline int cluster_rank() { return machine().block().rank; }
inline void cluster_sync(Call call = Call::here()) { machine().cluster_sync(call); }
inline void cluster_sync_after_init(Call call = Call::here()) { machine().cluster_sync(call); }

// ---- the kernels before and after: one at a time, here ----

inline void wait_for_kernel_before() {}
inline void let_kernel_after_begin() {}

// ---- registers: nothing to do but to come with the whole warpgroup ----

template <int kRegisters>
void registers_increase(Call call = Call::here()) {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
  machine().group_aligned("registers_increase", call);
}

template <int kRegisters>
void registers_decrease(Call call = Call::here()) {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
  machine().group_aligned("registers_decrease", call);
}

// ---- tensor cores, one warp ----

// Done by the last lane to come; lanes bring the address of a row and their words.
inline void stmatrix(void* row, const std::uint32_t (&words)[4], Call call = Call::here()) {
  machine().aligned("stmatrix", call);
  std::uint32_t brought[6];
  std::memcpy(brought, &row, sizeof row);
  std::memcpy(brought + 2, words, sizeof words);
  machine().collective("stmatrix", brought, sizeof brought, emulate::store_matrices);
}

// ---- wgmma. A pack of accumulators cannot be followed by a default argument: one, two and four are spelt out ----

template <class A>
void wgmma_fence(A&, Call call = Call::here()) {
  emulate::fence_products(call);
}

template <class A, class B>
void wgmma_fence(A&, B&, Call call = Call::here()) {
  emulate::fence_products(call);
}

template <class A, class B, class C, class D>
void wgmma_fence(A&, B&, C&, D&, Call call = Call::here()) {
  emulate::fence_products(call);
}

inline void wgmma_commit(Call call = Call::here()) { emulate::commit_products(call); }

template <int kPending>
void wgmma_wait(Call call = Call::here()) {
  emulate::wait_for_products(kPending, call);
}

template <int kPending, class A>
void wgmma_wait(A&, Call call = Call::here()) {
  emulate::wait_for_products(kPending, call);
}

template <int kPending, class A, class B>
void wgmma_wait(A&, B&, Call call = Call::here()) {
  emulate::wait_for_products(kPending, call);
}

template <int kPending, class A, class B, class C, class D>
void wgmma_wait(A&, B&, C&, D&, Call call = Call::here()) {
  emulate::wait_for_products(kPending, call);
}

template <class T>
constexpr Dtype kWgmmaDtype = std::is_same_v<T, float16> ? Dtype::kFloat16 : Dtype::kBFloat16;

constexpr bool is_wgmma_width(int columns) {
  return columns == 64 || columns == 96 || columns == 128 || columns == 192 || columns == 256;
}

template <class T, Major kMajorB = Major::kK, int kCount>
void wgmma(float (&d)[kCount], MatrixDescriptor a, MatrixDescriptor b, bool accumulate, Call call = Call::here()) {
  static_assert(is_wgmma_width(2 * kCount));
  const emulate::Operands operands{a.bits, nullptr, b.bits, kMajorB == Major::kMN};
  emulate::issue_product(kWgmmaDtype<T>, operands, d, 2 * kCount, accumulate, call);
}

template <class T, Major kMajorB = Major::kK, int kCount>
void wgmma(float (&d)[kCount], const std::uint32_t (&a)[4], MatrixDescriptor b, bool accumulate,
           Call call = Call::here()) {
  static_assert(is_wgmma_width(2 * kCount));
  const emulate::Operands operands{0, a, b.bits, kMajorB == Major::kMN};
  emulate::issue_product(kWgmmaDtype<T>, operands, d, 2 * kCount, accumulate, call);
}

}  // namespace aapt::arch
