// SPDX-License-Identifier: Apache-2.0
#include "emulate/tile_copy.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

namespace aapt::emulate {
namespace {

constexpr std::uint64_t kBarrierMark = 0x5be11aba51c0ffee;  // what an intact barrier looks like in memory
constexpr std::int64_t kMostBytes = (1 << 20) - 1;          // that a barrier can count

std::string place(std::uint32_t offset) {
  return "the barrier at byte " + std::to_string(offset) + " of shared memory";
}

TransactionBarrier& barrier_at(Block& block, std::uint32_t offset, const char* what) {
  std::uint64_t mark;
  std::memcpy(&mark, block.at(offset, sizeof mark, what), sizeof mark);
  const auto found = block.transaction_barriers.find(offset);
  if (found == block.transaction_barriers.end()) misuse(std::string(what) + ": unknown barrier, " + place(offset));
  if (mark != kBarrierMark) misuse(std::string(what) + ": a write over " + place(offset));
  return found->second;
}

void finish_phase_if_complete(Block& block, TransactionBarrier& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  ++barrier.phases;
  barrier.pending = barrier.expected;
  block.cluster->settle();
}

void arrive_at(Block& block, TransactionBarrier& barrier, std::uint32_t offset, int bytes, const char* what) {
  barrier.bytes += bytes;
  if (bytes < 0 || barrier.bytes > kMostBytes) {
    misuse(std::string(what) + ": expected 0 to " + std::to_string(kMostBytes) + " bytes in a phase, got " +
           std::to_string(barrier.bytes) + " for " + place(offset));
  }
  if (--barrier.pending < 0) {
    misuse(std::string(what) + ": more than the " + std::to_string(barrier.expected) + " arrivals of a phase at " +
           place(offset));
  }
  finish_phase_if_complete(block, barrier);
}

void complete_bytes(Block& block, std::uint32_t offset, std::int64_t bytes) {
  TransactionBarrier& barrier = barrier_at(block, offset, "copy");
  barrier.bytes -= bytes;
  if (barrier.bytes < -kMostBytes) misuse("copy: more bytes than announced for " + place(offset));
  finish_phase_if_complete(block, barrier);
}

MapDescription describe(const TensorMap& map) {
  MapDescription description;
  std::memcpy(&description, &map, sizeof description);
  return description;
}

std::uint32_t box_bytes(const MapDescription& map) {
  std::uint32_t bytes = map.element_bytes;
  for (int i = 0; i < map.rank; ++i) bytes *= map.box[i];
  return bytes;
}

void check_map(const MapDescription& map, const std::vector<int>& first, std::uint32_t offset, const char* what) {
  if (map.rank < 1 || map.rank > kMaxMapRank) misuse(std::string(what) + ": expected a map of make_tensor_map");
  if (first.size() != map.rank) {
    misuse(std::string(what) + ": expected " + std::to_string(map.rank) + " coordinates, got " +
           std::to_string(first.size()));
  }
  const std::uint32_t alignment = box_alignment(static_cast<Swizzle>(map.swizzle_bytes));
  if (offset % alignment != 0) {
    misuse(std::string(what) + ": expected a place in shared memory that is a multiple of " +
           std::to_string(alignment) + ", got " + std::to_string(offset));
  }
}

// Calls visit(row of the box, where its elements lie in the tensor, the range of them that lies inside).
template <class Visit>
void for_each_row(const MapDescription& map, const std::vector<int>& first, Visit visit) {
  std::uint32_t rows = 1;
  for (int i = 1; i < map.rank; ++i) rows *= map.box[i];
  const auto inside_from = static_cast<int>(std::clamp<std::int64_t>(-std::int64_t{first[0]}, 0, map.box[0]));
  const auto inside_to = static_cast<int>(
      std::clamp<std::int64_t>(static_cast<std::int64_t>(map.size[0]) - first[0], inside_from, map.box[0]));
  for (std::uint32_t row = 0; row < rows; ++row) {
    std::int64_t offset = std::int64_t{first[0]} * map.element_bytes;
    bool inside = true;
    std::uint32_t rest = row;
    for (int i = 1; i < map.rank; rest /= map.box[i++]) {
      const std::int64_t at = std::int64_t{first[i]} + rest % map.box[i];
      inside = inside && at >= 0 && at < static_cast<std::int64_t>(map.size[i]);
      offset += at * static_cast<std::int64_t>(map.stride_bytes[i - 1]);
    }
    visit(row, static_cast<std::int64_t>(map.address) + offset, inside_from, inside ? inside_to : inside_from);
  }
}

std::vector<char> read_box(const MapDescription& map, const std::vector<int>& first) {
  std::vector<char> box(box_bytes(map));
  const std::size_t row_bytes = std::size_t{map.box[0]} * map.element_bytes;
  for_each_row(map, first, [&](std::uint32_t row, std::int64_t address, int from, int to) {
    const std::int64_t skipped = std::int64_t{from} * map.element_bytes;
    if (to > from) {
      std::memcpy(box.data() + row * row_bytes + skipped, reinterpret_cast<const char*>(address + skipped),
                  std::size_t(to - from) * map.element_bytes);
    }
  });
  return box;
}

// The pieces of a box in shared memory, in the order of the box.
Pieces pieces_of(const MapDescription& map, std::uint32_t offset) {
  Pieces pieces(box_bytes(map) / kPieceBytes);
  for (std::uint32_t i = 0; i < pieces.size(); ++i) {
    pieces[i] = offset + swizzled(static_cast<Swizzle>(map.swizzle_bytes), i * kPieceBytes);
  }
  return pieces;
}

}  // namespace

std::uint32_t shared_offset(const void* shared, const char* what) {
  Block& block = machine().block();
  const std::ptrdiff_t offset = static_cast<const char*>(shared) - block.shared.data();
  if (offset < 0 || offset >= static_cast<std::ptrdiff_t>(block.shared.size())) {
    misuse(std::string(what) + ": expected a pointer into shared memory");
  }
  return static_cast<std::uint32_t>(offset);
}

// ---- barriers ----

void init_barrier(const void* barrier, int arrivals) {
  Block& block = machine().block();
  const std::uint32_t offset = shared_offset(barrier, "barrier_init");
  if (offset % 8 != 0) misuse("barrier_init: expected a multiple of 8, got byte " + std::to_string(offset));
  if (arrivals < 1) misuse("barrier_init: expected at least 1 arrival, got " + std::to_string(arrivals));
  std::memcpy(block.at(offset, 8, "barrier_init"), &kBarrierMark, sizeof kBarrierMark);
  TransactionBarrier fresh;
  fresh.expected = fresh.pending = arrivals;
  if (!block.transaction_barriers.emplace(offset, fresh).second) misuse("barrier_init: twice, for " + place(offset));
}

void fence_barriers() {
  for (auto& [offset, barrier] : machine().block().transaction_barriers) barrier.fenced = true;
}

void arrive(const void* barrier, int bytes, const char* what) {
  Block& block = machine().block();
  const std::uint32_t offset = shared_offset(barrier, what);
  arrive_at(block, barrier_at(block, offset, what), offset, bytes, what);
}

void arrive_remote(const void* barrier, int rank) {
  const char* what = "barrier_release_remote";
  const std::uint32_t offset = shared_offset(barrier, what);
  Block& other = machine().block_of_cluster(rank);
  TransactionBarrier& remote = barrier_at(other, offset, what);
  if (!remote.fenced) misuse(std::string(what) + ": no barrier_init_fence for " + place(offset));
  arrive_at(other, remote, offset, 0, what);
}

void wait_for_phase(const void* barrier, int parity) {
  const std::uint32_t offset = shared_offset(barrier, "barrier_wait");
  const TransactionBarrier& awaited = barrier_at(machine().block(), offset, "barrier_wait");
  if (parity != 0 && parity != 1) misuse("barrier_wait: expected parity 0 or 1, got " + std::to_string(parity));
  // Looked at again after every phase: hardware sees the parity only, and a thread may be late by two phases.
  while (static_cast<int>(awaited.phases & 1) == parity) {
    machine().wait(&awaited.phases, awaited.phases + 1, "barrier_wait", offset);
  }
}

// ---- copies to shared memory ----

void start_tile_load(const void* shared, const TensorMap& map, const void* barrier, const std::vector<int>& first,
                     unsigned blocks) {
  const MapDescription description = describe(map);
  const std::uint32_t to = shared_offset(shared, "tile_load"), done = shared_offset(barrier, "tile_load");
  check_map(description, first, to, "tile_load");
  if (blocks == 0 || blocks >> machine().launch().cluster != 0) {
    misuse("tile_load: expected a set of the " + std::to_string(machine().launch().cluster) +
           " blocks of the cluster, got " + std::to_string(blocks));
  }
  for (unsigned rank = 0; rank < machine().launch().cluster; ++rank) {
    if ((blocks >> rank & 1) == 0) continue;
    Block& block = machine().block_of_cluster(static_cast<int>(rank));
    if (!barrier_at(block, done, "tile_load").fenced) misuse("tile_load: no barrier_init_fence for " + place(done));
    block.at(to, box_bytes(description), "tile_load");
    const Pieces pieces = pieces_of(description, to);
    block.shared.require_unread(pieces, "tile_load");
    block.shared.require_visible(pieces, "tile_load");
    // To each block at a moment of its own.
    machine().later([description, first, &block, to, done, pieces] {
      const std::vector<char> box = read_box(description, first);
      block.at(to, box.size(), "copy");
      for (std::size_t i = 0; i < pieces.size(); ++i) {
        block.shared.write(pieces[i], box.data() + i * kPieceBytes, "copy");
      }
      complete_bytes(block, done, static_cast<std::int64_t>(box.size()));
    });
  }
}

// ---- copies to global memory ----

void TileStore::do_read() {
  if (read) return;
  read = true;
  block->at(offset, box_bytes(map), "tile_store");
  block->shared.require_unchanged(pieces, "tile_store");
  box.resize(box_bytes(map));
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    std::memcpy(box.data() + i * kPieceBytes, block->shared.read(pieces[i]), kPieceBytes);
  }
}

void TileStore::release() {
  if (released) return;
  do_read();
  released = true;
  block->shared.end_read(pieces);
}

void TileStore::do_write() {
  do_read();
  if (written) return;
  written = true;
  const std::size_t row_bytes = std::size_t{map.box[0]} * map.element_bytes;
  for_each_row(map, first, [&](std::uint32_t row, std::int64_t address, int from, int to) {
    const std::int64_t skipped = std::int64_t{from} * map.element_bytes;
    if (to > from) {
      std::memcpy(reinterpret_cast<char*>(address + skipped), box.data() + row * row_bytes + skipped,
                  std::size_t(to - from) * map.element_bytes);
    }
  });
}

void start_tile_store(const TensorMap& map, const void* shared, const std::vector<int>& first) {
  auto store = std::make_shared<TileStore>();
  store->map = describe(map);
  store->first = first;
  store->block = &machine().block();
  store->offset = shared_offset(shared, "tile_store");
  check_map(store->map, first, store->offset, "tile_store");
  store->block->at(store->offset, box_bytes(store->map), "tile_store");
  store->pieces = pieces_of(store->map, store->offset);
  store->block->shared.settle(machine().thread().index);
  store->block->shared.require_visible(store->pieces, "tile_store");
  store->block->shared.begin_read(store->pieces);
  machine().thread().open_stores.push_back(store);
  if (machine().coin()) {
    machine().later([store] { store->do_read(); });
    if (machine().coin()) machine().later([store] { store->do_write(); });
  }
}

void commit_stores() {
  Thread& thread = machine().thread();
  thread.store_groups.push_back(std::move(thread.open_stores));
  thread.open_stores.clear();
}

void wait_for_stores(std::size_t pending) {
  const auto& groups = machine().thread().store_groups;
  for (std::size_t i = 0; i + pending < groups.size(); ++i) {
    for (const auto& store : groups[i]) store->release();
  }
}

void end_of_stores(Thread& thread) {
  bool unread = !thread.open_stores.empty();
  for (const auto& group : thread.store_groups) {
    for (const auto& store : group) unread = unread || !store->released;
  }
  if (unread) misuse("tile_store: a thread ended without store_commit and store_wait_read");
  for (const auto& group : thread.store_groups) {
    for (const auto& store : group) store->do_write();
  }
}

}  // namespace aapt::emulate
