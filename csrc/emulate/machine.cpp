// SPDX-License-Identifier: Apache-2.0
#include "emulate/machine.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "emulate/tile_copy.h"

namespace aapt::emulate {
namespace {

std::mutex one_at_a_time;  // guards the two below
Machine* running = nullptr;
unsigned schedule_seed = 0;

std::string text(Index3 index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

std::string awaited_barrier(const Thread& thread) {
  if (thread.awaited_barrier < 0) return "";
  const TransactionBarrier& barrier =
      thread.block->transaction_barriers.at(static_cast<std::uint32_t>(thread.awaited_barrier));
  return " for the barrier at byte " + std::to_string(thread.awaited_barrier) + " of shared memory, in its phase " +
         std::to_string(barrier.phases) + ", which lacks " + std::to_string(barrier.pending) + " of " +
         std::to_string(barrier.expected) + " arrivals and " + std::to_string(barrier.bytes) + " bytes";
}

}  // namespace

Machine& machine() { return *running; }

void set_schedule(unsigned seed) {
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  schedule_seed = seed;
}

void run(const Launch& how, const std::function<void()>& kernel) {
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  Machine fresh(schedule_seed);
  running = &fresh;
  fresh.run(how, kernel);
}

void misuse(const std::string& what) { throw std::runtime_error("emulated " + what); }

void Copy::land() const {
  if (valid) std::memcpy(to, from, valid);
  std::memset(static_cast<char*>(to) + valid, 0, 16 - valid);
}

// ---- inside a fiber ----

char* Block::at(std::uint32_t offset, std::size_t bytes, const char* what) {
  if (live == 0) misuse(std::string(what) + ": reached the shared memory of a block that has ended");
  if (offset + bytes > asynchronous_memory.size()) {
    misuse(std::string(what) + ": expected a place within " + std::to_string(asynchronous_memory.size()) +
           " bytes of shared memory, got " + std::to_string(bytes) + " bytes at " + std::to_string(offset));
  }
  return shared() + offset;
}

void Machine::settle_fences() {
  for (Block& block : blocks_) block.settle_fence();
}

void Machine::wait(const std::uint64_t* counter, std::uint64_t target, const char* reason, std::int64_t barrier) {
  if (*counter >= target) return;
  current_->awaited_barrier = barrier;
  current_->awaited = counter;
  current_->target = target;
  current_->reason = reason;
  current_->fiber.suspend();
}

void Machine::arrive(int id, int threads, bool wait_for_others) {
  NamedBarrier& barrier = block().barriers[id];
  const std::uint64_t target = barrier.generation + 1;
  if (++barrier.arrived == threads) {
    barrier.arrived = 0;
    ++barrier.generation;
    block().settle_fence();
  }
  if (wait_for_others) wait(&barrier.generation, target, id == 0 ? "sync_threads" : "named_barrier_sync");
}

Deposit* Machine::collective(const void* bytes, std::size_t size, const std::function<void(Deposit*)>& combine) {
  Warp& warp = block().warps[current_->warp()];
  const std::uint64_t target = warp.generation + 1;
  Deposit* deposits = warp.deposits[target & 1];
  std::memcpy(deposits[current_->lane()].word, bytes, size);
  if (++warp.arrived == warp.width) {
    warp.arrived = 0;
    block().settle_fence();
    if (combine) combine(deposits);
    ++warp.generation;
  }
  wait(&warp.generation, target, "an operation of its whole warp");
  return deposits;
}

void Machine::cluster_sync() {
  const std::uint64_t target = cluster_barrier_.generation + 1;
  ++cluster_barrier_.arrived;
  release_cluster_barrier();
  wait(&cluster_barrier_.generation, target, "cluster_sync");
}

// Threads that have ended are not waited for.
void Machine::release_cluster_barrier() {
  if (cluster_barrier_.arrived == 0 || cluster_barrier_.arrived < live_) return;
  cluster_barrier_.arrived = 0;
  ++cluster_barrier_.generation;
  settle_fences();
}

void Machine::end_of_thread() {
  end_of_stores(*current_);
  if (current_->products_issued > block().warpgroups[current_->index / 128].done) {
    misuse("wgmma: a thread ended without wgmma_wait");
  }
}

void Machine::entry() {
  Machine& self = machine();
  try {
    (*self.kernel_)();
    self.end_of_thread();
  } catch (...) {
    if (!self.failure_) self.failure_ = std::current_exception();
  }
  Thread& thread = self.thread();
  thread.done = true;
  --thread.block->live;
  --self.live_;
  self.release_cluster_barrier();
  for (;;) thread.fiber.suspend();
}

// ---- the scheduler ----

void Machine::run(const Launch& how, const std::function<void()>& kernel) {
  constexpr std::size_t most_shared_bytes = 227 << 10;  // of a Hopper GPU
  if (how.grid.x % how.cluster != 0 || how.threads > 1024 || how.shared_bytes > most_shared_bytes) {
    misuse("launch: expected whole clusters of " + std::to_string(how.cluster) + " blocks, at most 1024 threads and " +
           std::to_string(most_shared_bytes) + " bytes of shared memory, got " + std::to_string(how.grid.x) +
           " blocks along x, " + std::to_string(how.threads) + " threads and " + std::to_string(how.shared_bytes) +
           " bytes");
  }
  launch_ = how;
  kernel_ = &kernel;
  threads_ = std::vector<Thread>(how.threads * how.cluster);
  blocks_ = std::vector<Block>(how.cluster);
  order_.resize(threads_.size());
  std::iota(order_.begin(), order_.end(), 0);
  if (seed_) std::shuffle(order_.begin(), order_.end(), random_);
  for (unsigned z = 0; z < how.grid.z; ++z) {
    for (unsigned y = 0; y < how.grid.y; ++y) {
      for (unsigned x = 0; x < how.grid.x; x += how.cluster) {
        start_cluster({x, y, z});
        run_cluster();
      }
    }
  }
}

void Machine::start_cluster(Index3 first) {
  const int warps = (launch_.threads + 31) / 32;
  cluster_barrier_ = {};
  pending_.clear();
  for (unsigned rank = 0; rank < launch_.cluster; ++rank) {
    Block& block = blocks_[rank];
    block = Block();
    block.index = {first.x + rank, first.y, first.z};
    block.rank = rank;
    block.threads = block.live = launch_.threads;
    block.warps.assign(warps, {});
    if (launch_.threads % 32) block.warps.back().width = launch_.threads % 32;
    block.memory.assign(launch_.shared_bytes + 1024, static_cast<char>(0xff));
    block.asynchronous_memory.assign(launch_.shared_bytes, static_cast<char>(0xff));
    block.warpgroups = std::vector<Warpgroup>((launch_.threads + 127) / 128);
    for (unsigned i = 0; i < launch_.threads; ++i) {
      Thread& thread = threads_[rank * launch_.threads + i];
      Fiber fiber = std::move(thread.fiber);  // keeps its stack
      thread = {};
      thread.fiber = std::move(fiber);
      thread.block = &block;
      thread.index = i;
      thread.fiber.prepare(&Machine::entry);
    }
  }
  live_ = static_cast<int>(threads_.size());
}

void Machine::run_cluster() {
  held_warps_ = 0;
  bool any_ran = true;
  while (live_ || !pending_.empty()) {
    bool everyone_has_a_turn = !any_ran;  // no thread is held back after a round in which none could run
    any_ran = run_threads(everyone_has_a_turn);
    if (failure_) std::rethrow_exception(failure_);
    const bool stuck = !any_ran && everyone_has_a_turn;
    if (!pending_.empty() && (stuck || (seed_ && random_() % 4 == 0))) {
      const std::size_t which = seed_ ? random_() % pending_.size() : 0;
      const std::function<void()> operation = std::move(pending_[which]);
      pending_.erase(pending_.begin() + static_cast<std::ptrdiff_t>(which));
      operation();
    } else if (stuck) {
      report_deadlock();
    }
  }
}

// Every thread that can run, once, up to its next wait. With a random schedule some warps are held back: a few for this
// round, others for many rounds; or all of a block.
bool Machine::run_threads(bool& everyone_has_a_turn) {
  std::uint64_t skipped = 0;
  if (everyone_has_a_turn) {
    held_warps_ = 0;
  } else if (seed_) {
    if (random_() % 8 == 0) held_warps_ = random_() | random_();
    if (launch_.cluster > 1 && random_() % 8 == 0) held_warps_ = 0xffffffffull << (random_() & 32);
    skipped = (random_() & random_()) | held_warps_;
  }
  everyone_has_a_turn = skipped == 0;
  bool any_ran = false;
  for (const int i : order_) {
    Thread& thread = threads_[i];
    if (skipped >> (thread.warp() + 32 * (thread.block->rank & 1)) % 64 & 1) continue;
    if (thread.done || (thread.awaited && *thread.awaited < thread.target)) continue;
    thread.awaited = nullptr;
    current_ = &thread;
    any_ran = true;
    thread.fiber.resume();
  }
  return any_ran;
}

void Machine::report_deadlock() const {
  for (const Thread& thread : threads_) {
    if (thread.done) continue;
    throw std::runtime_error("emulated deadlock in block " + text(thread.block->index) + ": " + std::to_string(live_) +
                             " threads wait for ever, thread " + std::to_string(thread.index) + " in " + thread.reason +
                             awaited_barrier(thread));
  }
  throw std::runtime_error("emulated deadlock");
}

}  // namespace aapt::emulate
