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
#include "emulate/float8.h"
#include "emulate/tile_copy.h"
#include "emulate/wgmma.h"

namespace aapt::arch {

// ---- barriers in shared memory ----

struct Barrier {
  std::uint64_t state;
};

inline void barrier_init(Barrier* barrier, int arrivals) { emulate::init_barrier(barrier, arrivals); }
inline void barrier_init_fence() { emulate::fence_barriers(); }

inline void barrier_arrive(Barrier* barrier) {
  const char* what = "barrier_arrive";
  emulate::arrive(machine().block(), emulate::shared_offset(barrier, what), 0, 1, /*remote=*/false, what);
}

inline void barrier_arrive_expect_bytes(Barrier* barrier, int bytes) {
  const char* what = "barrier_arrive_expect_bytes";
  emulate::arrive(machine().block(), emulate::shared_offset(barrier, what), bytes, 1, /*remote=*/false, what);
}

inline void barrier_expect_bytes(Barrier* barrier, int bytes) {
  const char* what = "barrier_expect_bytes";
  emulate::arrive(machine().block(), emulate::shared_offset(barrier, what), bytes, 0, /*remote=*/false, what);
}

inline void barrier_arrive_remote(Barrier* barrier, int rank) {
  const char* what = "barrier_arrive_remote";
  emulate::arrive(machine().block_of_cluster(rank), emulate::shared_offset(barrier, what), 0, 1, /*remote=*/true, what);
}

inline void barrier_release_remote(Barrier* barrier, int rank) {
  const char* what = "barrier_release_remote";
  emulate::arrive(machine().block_of_cluster(rank), emulate::shared_offset(barrier, what), 0, 1, /*remote=*/true, what);
}

inline void barrier_wait(Barrier* barrier, int parity) { emulate::wait_for_phase(barrier, parity); }
inline void barrier_wait_cluster(Barrier* barrier, int parity) { emulate::wait_for_phase(barrier, parity); }

inline void fence_proxy_async() { machine().block().fenced = true; }

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

inline void bulk_load(void* shared, const void* global, int bytes, Barrier* barrier) {
  emulate::start_bulk_load(shared, global, bytes, barrier);
}

template <int kRank>
void tile_store(const TensorMap& map, const void* shared, const int (&first)[kRank]) {
  emulate::start_tile_store(map, shared, reversed(first));
}

inline void store_commit() { emulate::commit_stores(); }

template <int kPending>
void store_wait_read() {
  emulate::wait_for_stores(kPending, /*written=*/false);
}

template <int kPending>
void store_wait() {
  emulate::wait_for_stores(kPending, /*written=*/true);
}

// ---- one lane ----

inline bool elect_one() {
  sync_warp();
  return lane_index() == machine().elected_lane();
}

// ---- clusters ----

inline int cluster_rank() { return machine().block().rank; }
inline int cluster_size() { return static_cast<int>(machine().launch().cluster); }
inline void cluster_arrive() { machine().cluster_arrive(); }
inline void cluster_wait() { machine().cluster_wait(); }

inline void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

struct ClusterAddress {
  std::uint32_t value;  // the rank in the upper 8 bits, the offset in the others
};

inline ClusterAddress cluster_address(const void* shared, int rank) {
  return {static_cast<std::uint32_t>(rank) << 24 | emulate::shared_offset(shared, "cluster_address")};
}

inline char* cluster_memory(ClusterAddress address, std::size_t bytes, const char* what) {
  return machine().block_of_cluster(address.value >> 24).at(address.value & 0xffffff, bytes, what);
}

inline std::uint32_t cluster_load(ClusterAddress from) {
  std::uint32_t value;
  std::memcpy(&value, cluster_memory(from, sizeof value, "cluster_load"), sizeof value);
  return value;
}

inline void cluster_store(ClusterAddress to, std::uint32_t value) {
  std::memcpy(cluster_memory(to, sizeof value, "cluster_store"), &value, sizeof value);
}

inline Vector16 cluster_load_16(ClusterAddress from) {
  Vector16 value;
  std::memcpy(&value, cluster_memory(from, sizeof value, "cluster_load_16"), sizeof value);
  return value;
}

inline void cluster_store_16(ClusterAddress to, Vector16 value) {
  std::memcpy(cluster_memory(to, sizeof value, "cluster_store_16"), &value, sizeof value);
}

// ---- registers: nothing to do but to come with the whole warp ----

template <int kRegisters>
void registers_increase() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
  sync_warp();
}

template <int kRegisters>
void registers_decrease() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
  sync_warp();
}

// ---- kernels run one after the other here ----

inline void wait_for_earlier_kernels() {}
inline void let_next_kernel_start() {}

// ---- tensor cores, one warp ----

// Done by the last lane to come; lanes bring the address of a row and their words.
inline void stmatrix_any(void* row, const std::uint32_t (&words)[4], bool transposed) {
  std::uint32_t brought[6];
  std::memcpy(brought, &row, sizeof row);
  std::memcpy(brought + 2, words, sizeof words);
  machine().collective(brought, sizeof brought, [transposed](emulate::Deposit* deposits) {
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 8; ++i) {  // element i % 2 of word i / 2
        const int matrix = i / 2, across = 2 * (lane % 4) + i % 2, along = lane / 4;
        char* elements;
        std::memcpy(&elements, deposits[8 * matrix + (transposed ? across : along)].word, sizeof elements);
        const auto bits = static_cast<std::uint16_t>(deposits[lane].word[2 + matrix] >> 16 * (i % 2));
        std::memcpy(elements + 2 * (transposed ? along : across), &bits, sizeof bits);
      }
    }
  });
}

inline void stmatrix(void* row, const std::uint32_t (&words)[4]) { stmatrix_any(row, words, false); }
inline void stmatrix_transposed(void* row, const std::uint32_t (&words)[4]) { stmatrix_any(row, words, true); }

// ---- e4m3 ----

inline std::uint32_t pack_float8(float x0, float x1, float x2, float x3) {
  return round_to(float8{}, x0) | std::uint32_t{round_to(float8{}, x1)} << 8 |
         std::uint32_t{round_to(float8{}, x2)} << 16 | std::uint32_t{round_to(float8{}, x3)} << 24;
}

// ---- wgmma ----

template <int kCount>
void keep_registers(float (&)[kCount]) {}

template <class... Accumulators>
void wgmma_fence(Accumulators&...) {
  emulate::fence_products();
}

inline void wgmma_commit() { emulate::commit_products(); }

template <int kPending, class... Accumulators>
void wgmma_wait(Accumulators&...) {
  emulate::wait_for_products(kPending);
}

template <class T>
constexpr int kWgmmaDepth = 32 / static_cast<int>(sizeof(T));

template <class T>
constexpr Dtype kWgmmaDtype = std::is_same_v<T, float8>    ? Dtype::kFloat8
                              : std::is_same_v<T, float16> ? Dtype::kFloat16
                                                           : Dtype::kBFloat16;

constexpr bool is_wgmma_width(int columns) {
  return columns == 8 || columns == 16 || columns == 32 || columns == 64 || columns == 96 || columns == 128 ||
         columns == 192 || columns == 256;
}

template <class T, Major kMajorA = Major::kK, Major kMajorB = Major::kK, int kCount>
void wgmma(float (&d)[kCount], MatrixDescriptor a, MatrixDescriptor b, bool accumulate) {
  static_assert(is_wgmma_width(2 * kCount));
  static_assert(!std::is_same_v<T, float8> || (kMajorA == Major::kK && kMajorB == Major::kK),
                "e4m3 operands have to be K-major");
  emulate::issue_product(kWgmmaDtype<T>, {a.bits, b.bits, nullptr, kMajorA == Major::kMN, kMajorB == Major::kMN}, d,
                         2 * kCount, accumulate);
}

template <class T, Major kMajorB = Major::kK, int kCount>
void wgmma(float (&d)[kCount], const std::uint32_t (&a)[4], MatrixDescriptor b, bool accumulate) {
  static_assert(is_wgmma_width(2 * kCount));
  static_assert(!std::is_same_v<T, float8> || kMajorB == Major::kK, "e4m3 operands have to be K-major");
  emulate::issue_product(kWgmmaDtype<T>, {0, b.bits, a, false, kMajorB == Major::kMN}, d, 2 * kCount, accumulate);
}

}  // namespace aapt::arch
