// SPDX-License-Identifier: Apache-2.0
// Runs CUDA kernels as plain C++ on one CPU thread: a fiber per CUDA thread, the blocks of a cluster together, clusters
// one after the other.
//
// A schedule is drawn from a seed. Seed 0 runs threads in order and lands every asynchronous operation as late as it
// may. Other seeds shuffle the threads, let some warps run far ahead of others and land operations at random moments,
// so that a missing barrier or wait shows as a wrong result. Shared memory starts as NaN in every format.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "common/launch.h"
#include "emulate/fiber.h"

namespace aapt::emulate {

// A 16-byte-or-smaller copy that has been started: the first `valid` bytes of the source, then zeros.
struct Copy {
  void* to;
  const void* from;
  int bytes;
  int valid;
  void land() const;
};

struct Block;

struct Thread {
  Fiber fiber;
  Block* block = nullptr;
  int index = 0;  // in its block
  bool done = false;
  // Waits until *awaited >= target.
  const std::uint64_t* awaited = nullptr;
  std::uint64_t target = 0;
  const char* reason = "";
  std::vector<Copy> open_copies;  // cp.async: not yet committed
  std::deque<std::vector<Copy>> copy_groups;

  int lane() const { return index % 32; }
  int warp() const { return index / 32; }
};

// What a lane brings to an operation of its warp, and takes from it.
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
  std::int64_t bytes = 0;
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

  char* shared() {
    constexpr std::uintptr_t alignment = 1024;
    return reinterpret_cast<char*>((reinterpret_cast<std::uintptr_t>(memory.data()) + alignment - 1) & ~(alignment - 1));
  }
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

  // Suspends the thread until `*counter >= target`; `reason` is what a deadlock report says about it.
  void wait(const std::uint64_t* counter, std::uint64_t target, const char* reason);

  // Barrier `id` of the block.
  void arrive(int id, int threads, bool wait_for_others);

  // Each lane brings `size` bytes; the last one to come runs `combine` on all deposits; returns the deposits.
  Deposit* collective(const void* bytes, std::size_t size, const std::function<void(Deposit*)>& combine = nullptr);

  // An operation that completes at a moment of the scheduler's choice.
  void later(std::function<void()> operation) { pending_.push_back(std::move(operation)); }

  // True with a random schedule, half of the time.
  bool coin() { return seed_ != 0 && (random_() & 1); }

  // Barrier of the whole cluster.
  NamedBarrier cluster_barrier;

 private:
  void start_cluster(Index3 first);
  void run_cluster();
  bool run_threads(bool& everyone_had_a_turn);
  [[noreturn]] void report_deadlock() const;
  static void entry();

  Launch launch_;
  const std::function<void()>* kernel_ = nullptr;
  std::vector<Thread> threads_;
  std::vector<Block> blocks_;
  std::vector<int> order_;
  std::vector<std::function<void()>> pending_;
  std::exception_ptr failure_;
  Thread* current_ = nullptr;
  int live_ = 0;
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
