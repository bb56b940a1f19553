// SPDX-License-Identifier: Apache-2.0
// Runs CUDA kernels as plain C++ on one CPU thread: a fiber per CUDA thread. README.md says what is modelled, and what
// is not.
//
// A schedule is drawn from a seed. Seed 0 runs clusters and threads in order, and lands every asynchronous operation as
// late as it may. Other seeds shuffle both, let some warps run far ahead of others and land operations at random
// moments, so that a missing barrier or wait shows as a wrong result; odd seeds run two clusters at a time. Shared
// memory starts as NaN in every format.
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
#include "emulate/aligned.h"
#include "emulate/fiber.h"
#include "emulate/shared_memory.h"

namespace aapt::emulate {

// A copy of 16 bytes that has been started: the first `valid` bytes of the source, then zeros.
struct Copy {
  void* to;
  const void* from;
  int valid;
  void land() const;  // by the running thread
};

struct Block;
struct Cluster;
struct TileStore;

// Registers that a product works on until the thread has waited for it.
struct BusyRegisters {
  const char* begin;
  const char* end;
  bool read_only;         // operand A; else accumulators
  std::uint64_t product;  // number of the last one
};

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
  std::vector<std::vector<Copy>> copy_groups;
  std::vector<std::shared_ptr<TileStore>> open_stores;  // likewise
  std::vector<std::vector<std::shared_ptr<TileStore>>> store_groups;
  std::uint64_t aligned = 0, group_aligned = 0;  // instructions executed of the warp's and of the warpgroup's log
  bool wgmma_fenced = false;                     // since the last wait
  std::uint64_t products_issued = 0;             // wgmma
  std::uint64_t products_awaited = 0;            // the first ones, that this thread has waited for
  std::vector<std::uint64_t> product_groups;  // of the groups not yet waited for: products_issued when it was committed
  std::vector<BusyRegisters> busy_registers;  // in a traced kernel

  int lane() const { return index % 32; }
  int warp() const { return index / 32; }
};

// Operands and result of a lane in an operation of its warp.
struct alignas(64) Deposit {
  std::uint32_t word[24];
};

// stmatrix: writes four matrices from what the lanes have brought, the address of a row (2 words) and 4 words.
void store_matrices(Deposit* deposits);

struct Warp {
  std::uint64_t generation = 0;
  int arrived = 0;
  int width = 32;
  const char* operation = nullptr;  // that its lanes meet in
  Deposit deposits[2][32];  // used in turn, so that the next operation does not overwrite what is still read
  AlignedLog instructions;
};

// bar.sync and bar.arrive. A generation ends when whole warps with as many threads as they all named have come.
struct NamedBarrier {
  std::uint64_t generation = 0;
  int threads = 0, arrived = 0;  // in this generation
  std::uint32_t lanes[32] = {};  // of each warp, a bit each
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
  Pieces a_pieces, b_pieces;  // of shared memory that it reads
  int issued = 0;
  float* d[128];
  const std::uint32_t* a_words[128];
};

struct Warpgroup {
  std::deque<std::unique_ptr<Product>> products;  // issued by some threads, not yet waited for by all warps
  std::uint64_t first = 0;                        // number of products.front()
  std::uint64_t done = 0;                         // products
  std::uint64_t awaited[128] = {};                // by each thread
  std::uint64_t released[4] = {};                 // by each warp, whose wait is over
  AlignedLog instructions{128};
};

struct Block {
  Cluster* cluster = nullptr;
  Index3 index;
  int rank = 0;    // in its cluster
  int number = 0;  // among those that run at the same time
  int threads = 0;
  int live = 0;
  std::vector<Warp> warps;
  SharedMemory shared;
  NamedBarrier barriers[16];
  std::unordered_map<std::uint32_t, TransactionBarrier> transaction_barriers;  // by shared-memory offset
  std::vector<Warpgroup> warpgroups;

  // The memory at `offset`; misuse where `bytes` do not fit. `what` names the operation.
  char* at(std::uint32_t offset, std::size_t bytes, const char* what);
};

// Blocks that run together and reach each other's barriers and shared memory.
struct Cluster {
  std::vector<Block> blocks;
  std::uint64_t generation = 0;  // of the barrier of all its threads
  int arrived = 0;
  int live = 0;  // threads

  void settle() {
    for (Block& block : blocks) block.shared.settle();
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
  Block& block_of_cluster(int rank) { return block().cluster->blocks.at(rank); }
  const Launch& launch() const { return launch_; }

  // The running thread executes an .aligned instruction of its warp, or of its warpgroup.
  void aligned(const char* instruction, Place place) {
    block().warps[current_->warp()].instructions.enter(current_->aligned++, current_->index, instruction, place);
  }
  void group_aligned(const char* instruction, Place place);

  // Suspends the thread until `*counter >= target`; `reason` is what a deadlock report says about it, with the state
  // of a barrier where it waits for one.
  void wait(const std::uint64_t* counter, std::uint64_t target, const char* reason, std::int64_t barrier = -1);

  // Barrier `id` of the block.
  void arrive(int id, int threads, bool wait_for_others, const char* what, Place place);

  // Each lane brings `size` bytes; the last one to come runs `combine` on all deposits; returns the deposits.
  Deposit* collective(const char* what, const void* bytes, std::size_t size,
                      const std::function<void(Deposit*)>& combine = nullptr);

  // An operation that completes at a moment of the scheduler's choice.
  void later(std::function<void()> operation) { pending_.push_back(std::move(operation)); }

  // True with a random schedule, half of the time.
  bool coin() { return seed_ != 0 && (random_() & 1); }

  // Barrier of the whole cluster.
  void cluster_sync(Place place);

  // The lane of a warp that elect_one chooses: 0 in schedule 0, another one in others.
  int elected_lane() const { return static_cast<int>(seed_ * 11 % 32); }

  // ---- for kernels that are compiled for tracing (trace.cpp) ----

  bool traced() const { return traced_; }
  void trace() { traced_ = true; }

  // The running fiber is about to read or write memory.
  void access(const void* address, std::size_t bytes, bool write);

  // True inside a fiber, where `stack` is the address of a local variable.
  bool runs_on(const void* stack) const { return current_ && current_->fiber.has(stack); }

 private:
  void allocate(std::size_t clusters);
  void start(Cluster& cluster, Index3 first, int number);
  void run_clusters();
  bool run_threads(bool& everyone_has_a_turn);
  [[noreturn]] void report_deadlock() const;
  static void entry();
  void end_of_thread();
  static void end_of_block(const Block& block);
  static void release_barrier(Cluster& cluster);

  Launch launch_;
  const std::function<void()>* kernel_ = nullptr;
  std::vector<Cluster> clusters_;  // that run at the same time
  std::vector<Thread> threads_;    // of all of them
  std::vector<int> order_;
  std::vector<std::function<void()>> pending_;
  std::exception_ptr failure_;
  Thread* current_ = nullptr;
  int live_ = 0;
  bool traced_ = false;
  unsigned seed_ = 0;
  std::uint64_t held_warps_ = 0;
  std::mt19937_64 random_;
  int held_cluster_ = -1;  // of two that run at the same time; negative: both take turns
};

// The machine whose fiber runs now.
Machine& machine();

// The machine that runs now, or null.
Machine* running_machine();

// The schedule of the next launches of this process.
void set_schedule(unsigned seed);

// Runs a grid on a fresh machine with the schedule that was set.
void run(const Launch& how, const std::function<void()>& kernel);

// Throws the error of a misused primitive: "emulated <what>".
[[noreturn]] void misuse(const std::string& what);

}  // namespace aapt::emulate
