// SPDX-License-Identifier: Apache-2.0
// The emulated barriers in shared memory and the copy engine that completes on them.
#pragma once

#include <cstdint>
#include <vector>

#include "common/tensor_map.h"
#include "emulate/machine.h"

namespace aapt::emulate {

// The offset of a pointer into the shared memory of the running thread's block.
std::uint32_t shared_offset(const void* shared, const char* what);

// ---- barriers ----

void init_barrier(const void* barrier, int arrivals);
void fence_barriers();  // barrier_init_fence
void arrive(const void* barrier, int bytes, const char* what);
void arrive_remote(const void* barrier, int rank);
void wait_for_phase(const void* barrier, int parity);

// ---- copies ----

// A copy of the box at `first`, the dense dimension first, to `shared` in every block whose bit is set.
void start_tile_load(const void* shared, const TensorMap& map, const void* barrier, const std::vector<int>& first,
                     unsigned blocks);

// A store on its way: first its box is read, then it is written. Its thread may use the place again when it has waited
// for the reading.
struct TileStore {
  MapDescription map;
  std::vector<int> first;
  Block* block;
  std::uint32_t offset;
  Pieces pieces;
  std::vector<char> box;
  bool read = false, written = false, released = false;

  void do_read();
  void do_write();
  void release();
};

void start_tile_store(const TensorMap& map, const void* shared, const std::vector<int>& first);
void commit_stores();
void wait_for_stores(std::size_t pending);  // until they have been read

// Misuse if a thread that ends has not waited for its stores to be read; writes them.
void end_of_stores(Thread& thread);

}  // namespace aapt::emulate
