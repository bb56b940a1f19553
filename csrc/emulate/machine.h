// SPDX-License-Identifier: Apache-2.0
// Runs CUDA kernels as plain C++ on one CPU thread: a fiber per CUDA thread, the blocks of a cluster together, clusters
// one after the other.
//
// A schedule is drawn from a seed. Seed 0 runs threads in order and lands every asynchronous operation as late as it
// may. Other seeds shuffle the threads, let some warps run far ahead of others and land operations at random moments,
// so that a missing barrier or wait shows as a wrong result. Shared memory starts as NaN in every format.
//
// Tile stores and wgmma read a second copy of shared memory. Copies that the hardware makes by itself write to both;
// what threads write comes to the second one by fence_proxy_async() and the next barrier, so that a missing fence shows
// as NaN or as old data. Not seen: a fence that only some of the writing threads call, and a missing fence between an
// access of a thread and a copy that overwrites the place.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "common/launch.h"
#include "common/types.h"
#include "emulate/fiber.h"

namespace aapt::emulate {

// A copy of 16 bytes that has been started: the first `valid` bytes of the source, then zeros.
struct Copy {
  void* to;
  const void* from;
  int valid;
  void land() const;
};

struct Block;
struct TileStore;

struct Thread {
  Fiber fiber;
  Block* block = nullptr;
  int index = 0;  // in its block
  bool done = false;
  // Waits until *awaited >= target.
  const std::uint64_t* awaited = nullptr;
  std::uint64_t target = 0;
  const char* reason = "";
  std::int64_t awaited_barrier = -1;  // offset of the barrier in shared memory, where that is the reason
  std::vector<Copy> open_copies;      // cp.async: not yet committed
  std::deque<std::vector<Copy>> copy_groups;
  std::vector<std::shared_ptr<TileStore>> open_stores;  // likewise
  std::deque<std::vector<std::shared_ptr<TileStore>>> store_groups;
  bool wgmma_fenced = false;             // since the last wait
  std::uint64_t products_issued = 0;     // wgmma
  std::deque<std::uint64_t> product_groups;  // of the groups not yet waited for: products_issued when it was committed

  int lane() const { return index % 32; }
  int warp() const { return index / 32; }
};

// Operands and result of a lane in an operation of its warp.
struct alignas(64) Deposit {
  std::uint32_t word[24];
};

struct Warp {
  std::uint64_t generation = 0;
  int arrived = 0;
  int width = 32;
  Deposit deposits[2][32];  // used in turn, so that the next operation does not overwrite what is still read
};

// bar.sync and bar.arrive
struct NamedBarrier {
  std::uint64_t generation = 0;
  int arrived = 0;
};

// mbarrier: a phase ends when all arrivals and all announced bytes have come.
struct TransactionBarrier {
  std::uint64_t phases = 0;
  int expected = 0;
  int pending = 0;
  std::int64_t bytes = 0;  // announced and not yet here
  bool fenced = false;     // visible to copies and to other blocks
};

// One wgmma: filled in by the 128 threads of a warpgroup, done at once.
struct Product {
  std::uint64_t a = 0, b = 0;  // descriptors
  int columns = 0;
  Dtype dtype = Dtype::kBFloat16;
  bool a_in_registers = false, b_mn_major = false, accumulate = false;
  int issued = 0;
  float* d[128];
  const std::uint32_t* a_words[128];
};

struct Warpgroup {
  std::deque<std::unique_ptr<Product>> products;  // issued by some threads, not yet done
  std::uint64_t done = 0;                         // products
  std::uint64_t awaited[128] = {};                // by each thread
};

struct Block {
  Index3 index;
  int rank = 0;  // in its cluster
  int threads = 0;
  int live = 0;
  std::vector<Warp> warps;
  std::vector<char> memory;
  NamedBarrier barriers[16];
  std::unordered_map<std::uint32_t, TransactionBarrier> transaction_barriers;  // by shared-memory offset
  std::vector<Warpgroup> warpgroups;
  std::vector<char> asynchronous_memory;  // as tile stores and wgmma see it
  bool fenced = false;                    // since the last barrier

  char* shared() {
    constexpr std::uintptr_t alignment = 1024;
    const auto address = reinterpret_cast<std::uintptr_t>(memory.data());
    return reinterpret_cast<char*>((address + alignment - 1) & ~(alignment - 1));
  }

  // Writes of threads become visible to tile stores and wgmma, if there was a fence.
  void settle_fence() {
    if (fenced) std::memcpy(asynchronous_memory.data(), shared(), asynchronous_memory.size());
    fenced = false;
  }

  // The memory at `offset`; misuse where `bytes` do not fit. `what` names the operation.
  char* at(std::uint32_t offset, std::size_t bytes, const char* what);
};

class Machine {
 public:
  explicit Machine(unsigned seed) : seed_(seed), random_(seed) {}

  // Runs `kernel` once per thread of the grid. Throws std::runtime_error on a deadlock and on misuse of a primitive.
  void run(const Launch& how, const std::function<void()>& kernel);

  // ---- for the primitives, inside a fiber ----

  Thread& thread() { return *current_; }
  Block& block() { return *current_->block; }
  Block& block_of_cluster(int rank) { return blocks_.at(rank); }
  const Launch& launch() const { return launch_; }

  // Suspends the thread until `*counter >= target`; `reason` is what a deadlock report says about it, with the state
  // of a barrier where it waits for one.
  void wait(const std::uint64_t* counter, std::uint64_t target, const char* reason, std::int64_t barrier = -1);

  // Barrier `id` of the block.
  void arrive(int id, int threads, bool wait_for_others);

  // Each lane brings `size` bytes; the last one to come runs `combine` on all deposits; returns the deposits.
  Deposit* collective(const void* bytes, std::size_t size, const std::function<void(Deposit*)>& combine = nullptr);

  // An operation that completes at a moment of the scheduler's choice.
  void later(std::function<void()> operation) { pending_.push_back(std::move(operation)); }

  // True with a random schedule, half of the time.
  bool coin() { return seed_ != 0 && (random_() & 1); }

  // Barrier of the whole cluster.
  void cluster_sync();

  void settle_fences();

  // The lane of a warp that elect_one chooses: 0 in schedule 0, another one in others.
  int elected_lane() const { return static_cast<int>(seed_ * 11 % 32); }

 private:
  void start_cluster(Index3 first);
  void run_cluster();
  bool run_threads(bool& everyone_has_a_turn);
  [[noreturn]] void report_deadlock() const;
  static void entry();
  void end_of_thread();
  void release_cluster_barrier();

  Launch launch_;
  const std::function<void()>* kernel_ = nullptr;
  std::vector<Thread> threads_;
  std::vector<Block> blocks_;
  std::vector<int> order_;
  std::vector<std::function<void()>> pending_;
  std::exception_ptr failure_;
  Thread* current_ = nullptr;
  int live_ = 0;
  NamedBarrier cluster_barrier_;
  unsigned seed_ = 0;
  std::uint64_t held_warps_ = 0;
  std::mt19937_64 random_;
};

// The machine whose fiber runs now.
Machine& machine();

// The schedule of the next launches of this process.
void set_schedule(unsigned seed);

// Runs a grid on a fresh machine with the schedule that was set.
void run(const Launch& how, const std::function<void()>& kernel);

// Throws the error of a misused primitive: "emulated <what>".
[[noreturn]] void misuse(const std::string& what);

}  // namespace aapt::emulate
