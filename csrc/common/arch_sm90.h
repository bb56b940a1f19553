// SPDX-License-Identifier: Apache-2.0
// aapt::arch in PTX, what Hopper adds: barriers in shared memory, the copy engine, clusters. wgmma is in arch_wgmma.h,
// the emulated twins are in emulate/arch_sm90.h.
#pragma once

#include <cstdint>

#include "common/arch_ptx.h"
#include "common/tensor_map.h"

namespace aapt::arch {

// ---- barriers in shared memory ----

// A phase of a barrier ends when its arrivals and the bytes announced for it have all come. Phases have parities 0, 1,
// 0, ...: wait(parity) waits until the phase of that parity has ended, so wait(1) on a fresh barrier returns at once.
struct Barrier {
  std::uint64_t state;
};

// By one thread; then barrier_init_fence() by the same one, then a barrier of all who use it.
AAPT_DEVICE void barrier_init(Barrier* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// Shows initialised barriers to the copy engine and to the cluster.
AAPT_DEVICE void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

AAPT_DEVICE void barrier_arrive(Barrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Arrives and announces bytes that copies will bring within this phase; below 2^20 for a phase.
AAPT_DEVICE void barrier_arrive_expect_bytes(Barrier* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

// Arrives at the barrier that lies at this place in block `rank` of the cluster. By a thread that has only read, or
// written to its own block, since its last barrier: the arrival does not wait until other blocks see its writes.
AAPT_DEVICE void barrier_release_remote(Barrier* barrier, int rank) {
  asm volatile(
      "{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.release.cta.shared::cluster.b64 _, [remote];\n}" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
}

AAPT_DEVICE bool barrier_phase_ended(std::uint32_t address, int parity) {
  std::uint32_t ended;
  asm volatile(
      "{\n.reg .pred ended;\nmbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2;\nselp.b32 %0, 1, 0, ended;\n}"
      : "=r"(ended)
      : "r"(address), "r"(parity)
      : "memory");
  return ended;
}

AAPT_DEVICE void barrier_wait(Barrier* barrier, int parity) {
  const std::uint32_t address = shared_address(barrier);
  while (!barrier_phase_ended(address, parity)) {
  }
}

// barrier_wait for warps that load. In a build with AAPT_BOUNDED_WAITS, for debugging, a wait of four seconds ends the
// kernel with an error. Warps that multiply wait without a bound, so that their code is the same in every build; a
// kernel whose loading warp waits at its end for all others ends when one of them hangs, too.
AAPT_DEVICE void barrier_wait_bounded(Barrier* barrier, int parity) {
#ifdef AAPT_BOUNDED_WAITS
  constexpr std::uint32_t kLongestWaitNanoseconds = 4'000'000'000;  // of 2^32, after which the clock begins anew
  const std::uint32_t address = shared_address(barrier);
  std::uint32_t start, now;
  asm volatile("mov.u32 %0, %%globaltimer_lo;" : "=r"(start));
  while (!barrier_phase_ended(address, parity)) {
    asm volatile("mov.u32 %0, %%globaltimer_lo;" : "=r"(now));
    if (now - start > kLongestWaitNanoseconds) __trap();
  }
#else
  barrier_wait(barrier, parity);
#endif
}

// ---- order between ordinary accesses to shared memory and those of the copy engine and of wgmma ----

// By every thread that wrote to shared memory (st, stmatrix, cp.async) what a tile store or wgmma reads next, or what a
// copy overwrites; then a barrier.
AAPT_DEVICE void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- the copy engine: global to shared memory ----

// Brings a map to the cache of maps, so that the first copy need not wait for it. By one thread.
AAPT_DEVICE void prefetch_map(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(reinterpret_cast<std::uint64_t>(&map)) : "memory");
}

#define AAPT_TMA_LOAD(rank, coordinates, ...)                                                                          \
  asm volatile("cp.async.bulk.tensor." #rank                                                                           \
               "d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, " coordinates "], [%2];" ::"r"(to),   \
               "l"(from), "r"(done), __VA_ARGS__                                                                       \
               : "memory")

// Starts the copy of the box at `first` (a coordinate per dimension, in the order of the shape; negative ones too) to
// `shared`, which is aligned to box_alignment(). All bytes of the box, zeros included, count for the barrier.
// By one thread.
template <int kRank>
AAPT_DEVICE void tile_load(void* shared, const TensorMap& map, Barrier* barrier, const int (&first)[kRank]) {
  static_assert(kRank >= 1 && kRank <= kMaxMapRank);
  const std::uint32_t to = shared_address(shared), done = shared_address(barrier);
  const auto from = reinterpret_cast<std::uint64_t>(&map);
  if constexpr (kRank == 1) AAPT_TMA_LOAD(1, "{%3}", "r"(first[0]));
  if constexpr (kRank == 2) AAPT_TMA_LOAD(2, "{%3, %4}", "r"(first[1]), "r"(first[0]));
  if constexpr (kRank == 3) AAPT_TMA_LOAD(3, "{%3, %4, %5}", "r"(first[2]), "r"(first[1]), "r"(first[0]));
  if constexpr (kRank == 4) {
    AAPT_TMA_LOAD(4, "{%3, %4, %5, %6}", "r"(first[3]), "r"(first[2]), "r"(first[1]), "r"(first[0]));
  }
  if constexpr (kRank == 5) {
    AAPT_TMA_LOAD(5, "{%3, %4, %5, %6, %7}", "r"(first[4]), "r"(first[3]), "r"(first[2]), "r"(first[1]), "r"(first[0]));
  }
}
#undef AAPT_TMA_LOAD

#define AAPT_TMA_MULTICAST(rank, coordinates, ...)                                                                     \
  asm volatile("cp.async.bulk.tensor." #rank                                                                           \
               "d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, " coordinates      \
               "], [%2], %3;" ::"r"(to),                                                                               \
               "l"(from), "r"(done), "h"(blocks), __VA_ARGS__                                                          \
               : "memory")

// tile_load to this place in every block of the cluster whose bit of `blocks` is set; each block's own barrier, at
// this place, receives the bytes.
template <int kRank>
AAPT_DEVICE void tile_load_multicast(void* shared, const TensorMap& map, Barrier* barrier, const int (&first)[kRank],
                                     std::uint16_t blocks) {
  static_assert(kRank >= 1 && kRank <= kMaxMapRank);
  const std::uint32_t to = shared_address(shared), done = shared_address(barrier);
  const auto from = reinterpret_cast<std::uint64_t>(&map);
  if constexpr (kRank == 1) AAPT_TMA_MULTICAST(1, "{%4}", "r"(first[0]));
  if constexpr (kRank == 2) AAPT_TMA_MULTICAST(2, "{%4, %5}", "r"(first[1]), "r"(first[0]));
  if constexpr (kRank == 3) AAPT_TMA_MULTICAST(3, "{%4, %5, %6}", "r"(first[2]), "r"(first[1]), "r"(first[0]));
  if constexpr (kRank == 4) {
    AAPT_TMA_MULTICAST(4, "{%4, %5, %6, %7}", "r"(first[3]), "r"(first[2]), "r"(first[1]), "r"(first[0]));
  }
  if constexpr (kRank == 5) {
    AAPT_TMA_MULTICAST(5, "{%4, %5, %6, %7, %8}", "r"(first[4]), "r"(first[3]), "r"(first[2]), "r"(first[1]),
                       "r"(first[0]));
  }
}
#undef AAPT_TMA_MULTICAST

// ---- the copy engine: shared to global memory ----

#define AAPT_TMA_STORE(rank, coordinates, ...)                                                                         \
  asm volatile("cp.async.bulk.tensor." #rank "d.global.shared::cta.bulk_group [%0, " coordinates "], [%1];" ::"l"(to), \
               "r"(from), __VA_ARGS__                                                                                  \
               : "memory")

// Starts the copy of a box to the tensor; what lies outside of it is not written. By one thread.
template <int kRank>
AAPT_DEVICE void tile_store(const TensorMap& map, const void* shared, const int (&first)[kRank]) {
  static_assert(kRank >= 1 && kRank <= kMaxMapRank);
  const std::uint32_t from = shared_address(shared);
  const auto to = reinterpret_cast<std::uint64_t>(&map);
  if constexpr (kRank == 1) AAPT_TMA_STORE(1, "{%2}", "r"(first[0]));
  if constexpr (kRank == 2) AAPT_TMA_STORE(2, "{%2, %3}", "r"(first[1]), "r"(first[0]));
  if constexpr (kRank == 3) AAPT_TMA_STORE(3, "{%2, %3, %4}", "r"(first[2]), "r"(first[1]), "r"(first[0]));
  if constexpr (kRank == 4) {
    AAPT_TMA_STORE(4, "{%2, %3, %4, %5}", "r"(first[3]), "r"(first[2]), "r"(first[1]), "r"(first[0]));
  }
  if constexpr (kRank == 5) {
    AAPT_TMA_STORE(5, "{%2, %3, %4, %5, %6}", "r"(first[4]), "r"(first[3]), "r"(first[2]), "r"(first[1]),
                   "r"(first[0]));
  }
}
#undef AAPT_TMA_STORE

// Closes the group of this thread's stores since the last one.
AAPT_DEVICE void store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Waits until all but the last kPending of this thread's groups have been read from shared memory. A thread that stores
// does so before it ends.
template <int kPending>
AAPT_DEVICE void store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

// ---- one lane ----

// True in one lane of the warp, always the same one. All 32 lanes take part.
AAPT_DEVICE bool elect_one() {
  std::uint32_t elected;
  asm volatile("{\n.reg .pred elected;\nelect.sync _|elected, 0xffffffff;\nselp.b32 %0, 1, 0, elected;\n}"
               : "=r"(elected));
  return elected;
}

// ---- clusters ----

AAPT_DEVICE int cluster_rank() {
  std::uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}

// A barrier of all threads of the cluster. A block that others write to, or arrive at, must not end before they have
// done so.
AAPT_DEVICE void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// cluster_sync after barrier_init_fence, which alone has something to show: no thread waits until the GPU sees its
// other writes.
AAPT_DEVICE void cluster_sync_after_init() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// ---- the kernels before and after in the stream ----

// In a kernel launched with Launch::early: waits until the kernel before it has ended and all its writes are visible.
// By all threads, before they touch what that kernel or an earlier one reads or writes.
AAPT_DEVICE void wait_for_kernel_before() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// Lets the kernel after this one begin, if it is an early one, as soon as every block has come here or ended.
AAPT_DEVICE void let_kernel_after_begin() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// ---- registers ----

// Take registers from the pool of the block, or give some back. By all warps of a warpgroup; the kernel has launch
// bounds, and the roles of its warpgroups are the branches of one if.
template <int kRegisters>
AAPT_DEVICE void registers_increase() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
AAPT_DEVICE void registers_decrease() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// ---- tensor cores, one warp ----

// Writes four 8x8 matrices of 16-bit elements: the converse of ldmatrix.
AAPT_DEVICE void stmatrix(void* row, const std::uint32_t (&words)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
               "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
               : "memory");
}

}  // namespace aapt::arch
