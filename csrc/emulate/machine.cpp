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
Machine* running_machine() { return running; }

void set_schedule(unsigned seed) {
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  schedule_seed = seed;
}

void run(const Launch& how, const std::function<void()>& kernel) {
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  Machine fresh(schedule_seed);
  running = &fresh;
  const struct AtTheEnd {
    ~AtTheEnd() { running = nullptr; }
  } at_the_end;
  fresh.run(how, kernel);
}

void misuse(const std::string& what) { throw std::runtime_error("emulated " + what); }

void Copy::land() const {
  Block& block = machine().block();
  const std::ptrdiff_t offset = static_cast<char*>(to) - block.shared.data();
  if (machine().traced()) {
    block.shared.will_write(machine().thread().index, static_cast<std::uint32_t>(offset), 16);
  }
  if (valid) std::memcpy(to, from, valid);
  std::memset(static_cast<char*>(to) + valid, 0, 16 - valid);
}

void store_matrices(Deposit* deposits) {
  SharedMemory& shared = machine().block().shared;
  const int first = machine().thread().warp() * 32;
  for (int lane = 0; lane < 32; ++lane) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      char* row;
      std::memcpy(&row, deposits[8 * matrix + lane / 4].word, sizeof row);
      char* to = row + lane % 4 * 4;
      if (machine().traced()) shared.will_write(first + lane, static_cast<std::uint32_t>(to - shared.data()), 4);
      std::memcpy(to, &deposits[lane].word[2 + matrix], 4);
    }
  }
}

// ---- inside a fiber ----

char* Block::at(std::uint32_t offset, std::size_t bytes, const char* what) {
  if (live == 0) misuse(std::string(what) + ": reached the shared memory of a block that has ended");
  if (offset + bytes > shared.size()) {
    misuse(std::string(what) + ": expected a place within " + std::to_string(shared.size()) +
           " bytes of shared memory, got " + std::to_string(bytes) + " bytes at " + std::to_string(offset));
  }
  return shared.data() + offset;
}

void Machine::wait(const std::uint64_t* counter, std::uint64_t target, const char* reason, std::int64_t barrier) {
  if (*counter >= target) return;
  current_->awaited_barrier = barrier;
  current_->awaited = counter;
  current_->target = target;
  current_->reason = reason;
  current_->fiber.suspend();
}

void Machine::group_aligned(const char* instruction, Place place) {
  Warpgroup& group = block().warpgroups[current_->index / 128];
  group.instructions.enter(current_->group_aligned++, current_->index, instruction, place);
}

void Machine::arrive(int id, int threads, bool wait_for_others, const char* what, Place place) {
  aligned(what, place);
  Block& here = block();
  const auto refuse = [&](const std::string& expected, const std::string& got) {
    misuse(std::string(what) + ": expected " + expected + " at barrier " + std::to_string(id) + ", got " + got);
  };
  if (id < 0 || id > 15) refuse("a number from 0 to 15", std::to_string(id));
  NamedBarrier& barrier = here.barriers[id];
  if (threads % 32 != 0 && threads != here.threads) refuse("a multiple of 32 threads", std::to_string(threads));
  if (barrier.arrived == 0) barrier.threads = threads;
  if (barrier.threads != threads) {
    refuse(std::to_string(barrier.threads) + " threads, as others have named,", std::to_string(threads));
  }
  const int warp = current_->warp();
  const std::uint32_t lane = 1u << current_->lane();
  if (barrier.lanes[warp] & lane) refuse("each warp once in a generation", "warp " + std::to_string(warp) + " twice");
  barrier.lanes[warp] |= lane;
  const std::uint64_t target = barrier.generation + 1;
  if (++barrier.arrived == threads) {
    for (std::size_t i = 0; i < here.warps.size(); ++i) {
      const std::uint32_t whole = ~0u >> (32 - here.warps[i].width);
      const bool in_part = barrier.lanes[i] != 0 && barrier.lanes[i] != whole;
      if (in_part) refuse("whole warps", "a part of warp " + std::to_string(i));
      barrier.lanes[i] = 0;
    }
    barrier.arrived = 0;
    ++barrier.generation;
    here.shared.settle();
  }
  if (wait_for_others) wait(&barrier.generation, target, what);
}

Deposit* Machine::collective(const char* what, const void* bytes, std::size_t size,
                             const std::function<void(Deposit*)>& combine) {
  Warp& warp = block().warps[current_->warp()];
  if (warp.arrived == 0) warp.operation = what;
  if (warp.operation != what && std::strcmp(warp.operation, what) != 0) {
    misuse(std::string(what) + ": other lanes of the warp are in " + warp.operation);
  }
  const std::uint64_t target = warp.generation + 1;
  Deposit* deposits = warp.deposits[target & 1];
  std::memcpy(deposits[current_->lane()].word, bytes, size);
  if (++warp.arrived == warp.width) {
    warp.arrived = 0;
    block().shared.settle();
    if (combine) combine(deposits);
    ++warp.generation;
  }
  wait(&warp.generation, target, "an operation of its whole warp");
  return deposits;
}

void Machine::cluster_sync(Place place) {
  aligned("cluster_sync", place);
  Cluster& cluster = *block().cluster;
  const std::uint64_t target = cluster.generation + 1;
  ++cluster.arrived;
  release_barrier(cluster);
  wait(&cluster.generation, target, "cluster_sync");
}

// Threads that have ended are not waited for.
void Machine::release_barrier(Cluster& cluster) {
  if (cluster.arrived == 0 || cluster.arrived < cluster.live) return;
  cluster.arrived = 0;
  ++cluster.generation;
  cluster.settle();
}

void Machine::access(const void* address, std::size_t bytes, bool write) {
  SharedMemory& shared = block().shared;
  const auto* at = static_cast<const char*>(address);
  if (at >= shared.data() && at < shared.data() + shared.size()) {
    if (write) shared.will_write(current_->index, static_cast<std::uint32_t>(at - shared.data()), bytes);
    return;
  }
  for (const BusyRegisters& busy : current_->busy_registers) {
    if (at >= busy.end || at + bytes <= busy.begin || (busy.read_only && !write)) continue;
    const std::string what = std::string("emulated wgmma: thread ") + std::to_string(current_->index) +
                             (write ? " writes" : " reads") +
                             (busy.read_only ? " registers of operand A" : " accumulators") + " before wgmma_wait";
    if (!failure_) failure_ = std::make_exception_ptr(std::runtime_error(what));  // no exception passes a trace
  }
}

void Machine::end_of_thread() {
  end_of_stores(*current_);
  if (current_->products_issued > current_->products_awaited) misuse("wgmma: a thread ended without wgmma_wait");
}

// All threads of a warp have executed the same instructions.
void Machine::end_of_block(const Block& block) {
  for (const Warp& warp : block.warps) warp.instructions.end();
  for (const Warpgroup& group : block.warpgroups) group.instructions.end();
}

void Machine::entry() {
  Machine& self = machine();
  Thread& thread = self.thread();
  Block& block = *thread.block;
  try {
    (*self.kernel_)();
    self.end_of_thread();
    if (block.live == 1) end_of_block(block);
  } catch (...) {
    if (!self.failure_) self.failure_ = std::current_exception();
  }
  thread.done = true;
  --block.live;
  --block.cluster->live;
  --self.live_;
  release_barrier(*block.cluster);
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
  std::vector<Index3> first_blocks;  // of the clusters
  for (unsigned z = 0; z < how.grid.z; ++z) {
    for (unsigned y = 0; y < how.grid.y; ++y) {
      for (unsigned x = 0; x < how.grid.x; x += how.cluster) first_blocks.push_back({x, y, z});
    }
  }
  if (seed_) std::shuffle(first_blocks.begin(), first_blocks.end(), random_);
  const std::size_t at_a_time = seed_ % 2 ? 2 : 1;  // two cost a quarter more time: their stacks fill the cache
  for (std::size_t i = 0; i < first_blocks.size(); i += at_a_time) {
    const std::size_t count = std::min(at_a_time, first_blocks.size() - i);
    if (clusters_.size() != count) allocate(count);
    for (std::size_t j = 0; j < count; ++j) start(clusters_[j], first_blocks[i + j], static_cast<int>(j));
    run_clusters();
  }
}

// Room for so many clusters at the same time. Fibers that are there keep their stacks.
void Machine::allocate(std::size_t clusters) {
  clusters_ = std::vector<Cluster>(clusters);
  threads_.resize(launch_.threads * launch_.cluster * clusters);
  order_.resize(threads_.size());
  std::iota(order_.begin(), order_.end(), 0);
  if (seed_) std::shuffle(order_.begin(), order_.end(), random_);
}

void Machine::start(Cluster& cluster, Index3 first, int number) {
  const int warps = (launch_.threads + 31) / 32;
  cluster = {};
  cluster.live = launch_.threads * launch_.cluster;
  cluster.blocks.resize(launch_.cluster);
  for (unsigned rank = 0; rank < launch_.cluster; ++rank) {
    Block& block = cluster.blocks[rank];
    block.cluster = &cluster;
    block.index = {first.x + rank, first.y, first.z};
    block.rank = rank;
    block.number = number * launch_.cluster + rank;
    block.threads = block.live = launch_.threads;
    block.warps.assign(warps, {});
    if (launch_.threads % 32) block.warps.back().width = launch_.threads % 32;
    for (Warp& warp : block.warps) warp.instructions = AlignedLog(warp.width);
    block.shared = SharedMemory(launch_.shared_bytes, launch_.threads);
    block.warpgroups = std::vector<Warpgroup>((launch_.threads + 127) / 128);
    for (unsigned i = 0; i < launch_.threads; ++i) {
      Thread& thread = threads_[block.number * launch_.threads + i];
      Fiber fiber = std::move(thread.fiber);  // keeps its stack
      thread = {};
      thread.fiber = std::move(fiber);
      thread.block = &block;
      thread.index = i;
      thread.fiber.prepare(&Machine::entry);
    }
  }
  live_ += cluster.live;
}

// Runs the clusters that were started, to their end.
void Machine::run_clusters() {
  held_warps_ = 0;
  held_cluster_ = seed_ && random_() % 4 ? random_() & 1 : -1;
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
// round, others for many rounds; or all of every second block of a cluster. One of two clusters is held back for longer
// still: then the stacks of the other one stay in the cache.
bool Machine::run_threads(bool& everyone_has_a_turn) {
  std::uint64_t skipped = 0;
  int skipped_cluster = -1;
  if (everyone_has_a_turn) {
    held_warps_ = 0;
  } else if (seed_) {
    if (random_() % 64 == 0) held_cluster_ = random_() % 4 == 0 ? -1 : random_() & 1;
    const bool other_lives = clusters_.size() > 1 && held_cluster_ >= 0 && clusters_[held_cluster_ ^ 1].live;
    if (other_lives) skipped_cluster = held_cluster_;
    if (random_() % 8 == 0) held_warps_ = random_() | random_();
    if (launch_.cluster > 1 && random_() % 8 == 0) held_warps_ = 0xffffffffull << (random_() & 32);
    skipped = (random_() & random_()) | held_warps_;
  }
  everyone_has_a_turn = skipped == 0 && skipped_cluster < 0;
  bool any_ran = false;
  for (const int i : order_) {
    Thread& thread = threads_[i];
    if (skipped >> (thread.warp() + 32 * (thread.block->rank & 1)) % 64 & 1) continue;
    if (thread.block->number / static_cast<int>(launch_.cluster) == skipped_cluster) continue;
    if (thread.done || (thread.awaited && *thread.awaited < thread.target)) continue;
    thread.awaited = nullptr;
    current_ = &thread;
    any_ran = true;
    thread.fiber.resume();
    current_ = nullptr;
    thread.block->shared.check_writes();
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
