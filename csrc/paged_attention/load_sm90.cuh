// SPDX-License-Identifier: Apache-2.0
// The warp that loads: it goes through the page table and fills a ring of tiles of two pages in shared memory.
#pragma once

#include <cstdint>

#include "common/arch.h"
#include "common/ring_place.cuh"
#include "paged_attention/config_sm90.h"
#include "paged_attention/page_table.cuh"
#include "paged_attention/params.h"

namespace aapt::paged_attention_sm90_parts {

// Queries of a block, and its entries of the page table.
struct Place {
  int first_token, head, row;
  int first_entry, end_entry;
  int part;  // of all parts there are; negative: these are all keys of the head

  // Along y of a split grid: the whole heads, then the first parts of the others, then their second parts, and so on.
  template <class Config>
  AAPT_DEVICE static Place of_this_block(const PagedAttentionSm90Params& params) {
    const Index3 index = arch::block_index();
    const int first_token = static_cast<int>(index.x) * Config::kRows, entries = params.common.entries;
    if constexpr (Config::kSplit) {
      const SplitKeys& split = params.split;
      const int heads = params.common.heads, piece = static_cast<int>(index.y) - split.whole;
      if (piece < 0) {
        const int head = static_cast<int>(index.y);
        return {first_token, head % heads, head / heads, 0, entries, -1};
      }
      const int split_heads = params.common.batch * heads - split.whole;
      const int nth = piece % split_heads, part = piece / split_heads, head = split.whole + nth;
      return {first_token, head % heads, head / heads, share(entries, split.cuts[part]),
              share(entries, split.cuts[part + 1]), nth * split.parts + part};
    } else {
      return {first_token, static_cast<int>(index.y), static_cast<int>(index.z), 0, entries, -1};
    }
  }

 private:
  AAPT_DEVICE static int share(int entries, int cut) {
    return static_cast<int>(std::int64_t{entries} * cut / SplitKeys::kShares);
  }
};

// The two pages of a tile. The second one may be missing, and all of a tile at the end.
struct TilePages {
  Page page[2];

  AAPT_DEVICE explicit TilePages(PageTable& table) {
    page[0] = table.next();
    page[1] = page[0].valid ? table.next() : page[0];
  }
  AAPT_DEVICE bool any() const { return page[0].valid > 0; }
  AAPT_DEVICE TileFacts facts(float scale_log2) const {
    return {{page[0].valid, page[1].valid}, {page[0].bias_log2 / scale_log2, page[1].bias_log2 / scale_log2}};
  }
};

// Starts the copies of a tile's pages, in slabs of 64 columns, into a stage that is free: in a cluster, one that is
// free in both blocks, because block i brings page i to both.
template <class Config>
AAPT_DEVICE void load_pages(char* tile, const TensorMap& map, arch::Barrier* full, const TilePages& pages,
                            int kv_head) {
  const int present = pages.page[1].valid ? 2 : 1;
  // Announce the bytes of all pages present, whichever block brings them.
  arch::barrier_arrive_expect_bytes(full, present * Config::kSlabs * Config::kPageSlabBytes);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (i == present) break;
    if (Config::kCluster == 2 && arch::cluster_rank() != i) continue;
#pragma unroll
    for (int slab = 0; slab < Config::kSlabs; ++slab) {
      char* to = tile + slab * Config::kTileSlabBytes + i * Config::kPageSlabBytes;
      const int first[4] = {pages.page[i].id, 0, kv_head, 64 * slab};
      if constexpr (Config::kCluster == 1) {
        arch::tile_load(to, map, full, first);
      } else {
        arch::tile_load_multicast(to, map, full, first, 0b11);
      }
    }
  }
}

template <class Config>
AAPT_DEVICE void load_queries(typename Config::SharedMemory& shared, const PagedAttentionSm90Params& params,
                              const Place& block) {
  arch::barrier_arrive_expect_bytes(&shared.full_q, 2 * Config::kSlabs * Config::kGroupSlabBytes);
  for (int group = 0; group < 2; ++group) {
    for (int slab = 0; slab < Config::kSlabs; ++slab) {
      arch::tile_load(shared.q[group] + slab * Config::kGroupSlabBytes, params.q, &shared.full_q,
                      {block.row, block.first_token + 64 * group, block.head, 64 * slab});
    }
  }
}

// Slots that do not count may hold NaN, which a weight of zero does not take away: their values become zero.
template <class Config>
AAPT_DEVICE void clear_values(char* v, const TileFacts& facts) {
  constexpr int kPieces = 8;  // of 16 bytes in a row of a slab; zeros are the same wherever the swizzle puts them
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int valid = facts.valid[i];
    for (int at = arch::lane_index(); at < (kPageSlots - valid) * kPieces * Config::kSlabs; at += 32) {
      const int slot = valid + at / (kPieces * Config::kSlabs), slab = at / kPieces % Config::kSlabs;
      char* row = v + slab * Config::kTileSlabBytes + i * Config::kPageSlabBytes + slot * 128;
      *reinterpret_cast<Vector16*>(row + at % kPieces * 16) = {};
    }
  }
  // Show the zeros to wgmma, then wait for those of the whole warp.
  arch::fence_proxy_async();
  arch::sync_warp();
}

// Loads everything that the block multiplies. By a whole warp, of which one lane starts the copies.
template <class Config>
AAPT_DEVICE void load(typename Config::SharedMemory& shared, const PagedAttentionSm90Params& params,
                      const Place& block) {
  const bool chosen = arch::elect_one();
  // Start the copies of the queries, which are waited for once, and bring the other maps near.
  if (chosen) {
    load_queries<Config>(shared, params, block);
    arch::prefetch_map(params.k_pages);
    arch::prefetch_map(params.v_pages);
    arch::prefetch_map(Config::kSplit && block.part >= 0 ? params.parts : params.out);
  }
  const int kv_head = block.head * params.common.kv_heads / params.common.heads;
  PageTable table(params.common, block.row, block.first_entry, block.end_entry);
  RingPlace<Config::kStages> place, before;  // of a tile, and of the one before it
  TileFacts facts_before = {};
  for (bool first = true;; first = false, place.advance()) {
    const int stage = place.stage;
    const TilePages pages(table);
    const TileFacts facts = pages.facts(params.common.scale_log2);
    // Wait until the keys of this stage have been read, then replace them.
    arch::barrier_wait_bounded(&shared.empty_k[stage], place.parity ^ 1);
    if (chosen) {
      // The facts come first, so that whoever has waited for the keys may read them.
      shared.facts[stage] = facts;
      if (pages.any()) {
        load_pages<Config>(shared.k[stage], params.k_pages, &shared.full_k[stage], pages, kv_head);
      } else {
        // Announce the end: a tile without pages, and without copies to wait for.
        shared.broken = table.broken();
        arch::barrier_arrive(&shared.full_k[stage]);
        // The last blocks are at their end soon: the kernel that adds up the parts may begin to wait.
        if constexpr (Config::kSplit) arch::let_kernel_after_begin();
      }
    }
    // Clear the values of the tile before, whose copies have had their time to come.
    if (!first) {
      if (facts_before.partial()) {
        arch::barrier_wait_bounded(&shared.full_v[before.stage], before.parity);
        clear_values<Config>(shared.v[before.stage], facts_before);
      }
      if (chosen) arch::barrier_arrive(&shared.cleared_v[before.stage]);
    }
    if (!pages.any()) break;
    // Wait until the values of this stage have been read, then replace them.
    arch::barrier_wait_bounded(&shared.empty_v[stage], place.parity ^ 1);
    if (chosen) load_pages<Config>(shared.v[stage], params.v_pages, &shared.full_v[stage], pages, kv_head);
    before = place;
    facts_before = facts;
    // Keep the lanes together: a parity tells a barrier's phase from the next one, but not from the one after that.
    arch::sync_warp();
  }
  // Stay until the last stages have been read, too: then no copy is on its way from here to the other block of the
  // cluster, and no arrival from there to barriers of this one.
  for (int i = 0; i < Config::kStages; ++i, place.advance()) {
    arch::barrier_wait_bounded(&shared.empty_k[place.stage], place.parity ^ 1);
    arch::barrier_wait_bounded(&shared.empty_v[place.stage], place.parity ^ 1);
  }
}

}  // namespace aapt::paged_attention_sm90_parts
