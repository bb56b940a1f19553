// SPDX-License-Identifier: Apache-2.0
// Attention over pages with the copy engine and wgmma, for Hopper.
//
// A block owns 128 query rows of one head: 64 for each of two warpgroups that multiply. A third one loads, with one
// thread, tiles of two pages into a ring of shared memory and runs ahead of them. Scores and output stay in registers;
// the weights go from registers into the second product. While one multiplying warpgroup is busy with its softmax, the
// other one has the tensor cores.
#pragma once

#include <cmath>

#include "common/arch.h"
#include "paged_attention/config_sm90.h"
#include "paged_attention/page_table.cuh"
#include "paged_attention/params.h"
#include "paged_attention/softmax.cuh"

namespace aapt::paged_attention_sm90_parts {

// The two pages of a tile. The second one may be missing, and all of a tile at the end.
struct TilePages {
  Page page[2];

  AAPT_DEVICE explicit TilePages(PageTable& table) {
    page[0] = table.next();
    page[1] = page[0].valid ? table.next() : page[0];
  }
  AAPT_DEVICE bool any() const { return page[0].valid > 0; }
};

// A place in the ring: stages are used in turn, and each turn has the other parity.
template <int kStages>
struct RingPlace {
  int stage = 0, parity = 0;

  AAPT_DEVICE void advance() {
    stage = stage + 1 == kStages ? 0 : stage + 1;
    parity ^= stage == 0;
  }
};

// Waits until a stage is free and starts the copies of its pages, in slabs of 64 columns.
template <class Config>
AAPT_DEVICE void load_pages(char* tile, const TensorMap& map, arch::Barrier* full, arch::Barrier* empty, int parity,
                            const TilePages& pages, int kv_head) {
  arch::barrier_wait(empty, parity ^ 1);
  const int present = pages.page[1].valid ? 2 : 1;
  arch::barrier_arrive_expect_bytes(full, present * Config::kSlabs * Config::kPageSlabBytes);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (i == present) break;
#pragma unroll
    for (int slab = 0; slab < Config::kSlabs; ++slab) {
      arch::tile_load(tile + slab * Config::kTileSlabBytes + i * Config::kPageSlabBytes, map, full,
                      {pages.page[i].id, 0, kv_head, 64 * slab});
    }
  }
}

template <class Config>
AAPT_DEVICE void load(typename Config::SharedMemory& shared, const PagedAttentionSm90Params& params, int first_token,
                      int head, int row) {
  arch::barrier_arrive_expect_bytes(&shared.full_q, 2 * Config::kSlabs * Config::kGroupSlabBytes);
  for (int group = 0; group < 2; ++group) {
    for (int slab = 0; slab < Config::kSlabs; ++slab) {
      arch::tile_load(shared.q[group] + slab * Config::kGroupSlabBytes, params.q, &shared.full_q,
                      {row, first_token + 64 * group, head, 64 * slab});
    }
  }
  const int kv_head = head * params.common.kv_heads / params.common.heads;
  PageTable table(params.common, row);
  RingPlace<Config::kStages> place;
  for (TilePages pages(table); pages.any(); pages = TilePages(table), place.advance()) {
    const int stage = place.stage;
    load_pages<Config>(shared.k[stage], params.k_pages, &shared.full_k[stage], &shared.empty_k[stage], place.parity,
                       pages, kv_head);
    load_pages<Config>(shared.v[stage], params.v_pages, &shared.full_v[stage], &shared.empty_v[stage], place.parity,
                       pages, kv_head);
  }
}

// What a thread has of 64 rows: accumulators of [8 rows, 8 columns] pairs, as softmax.cuh sees them.
template <int kColumns>
using Accumulators = float[1][kColumns / 8][4];

template <int kColumns>
AAPT_DEVICE float (&flat(Accumulators<kColumns>& accumulators))[kColumns / 2] {
  return reinterpret_cast<float(&)[kColumns / 2]>(accumulators);
}

// scores = Q K^T over the tile.
template <class Config>
AAPT_DEVICE void multiply_keys(Accumulators<Config::kKeys>& scores, const char* q, const char* k) {
  const auto rows = make_matrix_descriptor(arch::shared_address(q), Swizzle::k128Bytes, 0, 1024);
  const auto keys = make_matrix_descriptor(arch::shared_address(k), Swizzle::k128Bytes, 0, 1024);
  auto& d = flat<Config::kKeys>(scores);
  arch::wgmma_fence(d);
#pragma unroll
  for (int step = 0; step < Config::kHeadDim / 16; ++step) {
    const int slab = step / 4, in_slab = step % 4 * 32;
    arch::wgmma<typename Config::Element>(d, rows.moved(slab * Config::kGroupSlabBytes + in_slab),
                                          keys.moved(slab * Config::kTileSlabBytes + in_slab), step > 0);
  }
  arch::wgmma_commit();
  arch::wgmma_wait<0>(d);
}

// out += P V over the tile, P in registers.
template <class Config>
AAPT_DEVICE void multiply_values(Accumulators<Config::kHeadDim>& out, const Accumulators<Config::kKeys>& weights,
                                 const char* v) {
  constexpr int kSteps = Config::kKeys / 16;
  // Two tiles of 8 keys are, pair by pair, the left operand of the product over their 16 keys.
  std::uint32_t p[kSteps][4];
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float(&pair)[4] = weights[0][2 * step + i / 2];
      p[step][i] = arch::pack<typename Config::Element>(pair[i % 2 * 2], pair[i % 2 * 2 + 1]);
    }
  }
  const auto values =
      make_matrix_descriptor(arch::shared_address(v), Swizzle::k128Bytes, Config::kTileSlabBytes, 1024);
  auto& d = flat<Config::kHeadDim>(out);
  arch::wgmma_fence(d);
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    arch::wgmma<typename Config::Element, Major::kMN>(d, p[step], values.moved(step * 16 * 128), true);
  }
  arch::wgmma_commit();
  arch::wgmma_wait<0>(d);
}

// Slots that do not count may hold NaN, which a weight of zero does not take away: their values become zero. Each
// warpgroup does it for itself, so that it need not wait for the other one.
template <class Config>
AAPT_DEVICE void clear_values(char* v, const TilePages& pages, int group) {
  constexpr int kPieces = 8;  // of 16 bytes in a row of a slab; zeros are the same wherever the swizzle puts them
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int valid = pages.page[i].valid;
    for (int at = arch::thread_index() % 128; at < (kPageSlots - valid) * kPieces * Config::kSlabs; at += 128) {
      const int slot = valid + at / (kPieces * Config::kSlabs), slab = at / kPieces % Config::kSlabs;
      char* row = v + slab * Config::kTileSlabBytes + i * Config::kPageSlabBytes + slot * 128;
      *reinterpret_cast<Vector16*>(row + at % kPieces * 16) = {};
    }
  }
  arch::fence_proxy_async();
  arch::named_barrier_sync(1 + group, 128);
}

// Scores of slots that do not count become minus infinity; the bias of a page is added in units of raw scores.
template <class Config>
AAPT_DEVICE void mask_and_bias(Accumulators<Config::kKeys>& scores, const TilePages& pages, float scale_log2) {
#pragma unroll
  for (int n = 0; n < Config::kKeys / 8; ++n) {
    const Page& page = pages.page[n / 8];
    const float bias = page.bias_log2 / scale_log2;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int slot = n % 8 * 8 + arch::lane_index() % 4 * 2 + i % 2;
      scores[0][n][i] = slot < page.valid ? scores[0][n][i] + bias : -INFINITY;
    }
  }
}

// Writes the warpgroup's rows: to the place of its queries, from there with the copy engine, which leaves out tokens
// beyond the last one.
template <class Config>
AAPT_DEVICE void store(const Accumulators<Config::kHeadDim>& out, char* rows, const PagedAttentionSm90Params& params,
                       int group, int first_token, int head, int row) {
  const int lane = arch::lane_index(), warp = arch::thread_index() % 128 / 32;
#pragma unroll
  for (int n = 0; n < Config::kHeadDim / 8; n += 2) {
    std::uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float(&pair)[4] = out[0][n + i / 2];
      words[i] = arch::pack<typename Config::Element>(pair[i % 2 * 2], pair[i % 2 * 2 + 1]);
    }
    const int column = 8 * n + lane / 16 * 8;
    const std::uint32_t at = (16 * warp + lane % 16) * 128 + column % 64 * 2;
    arch::stmatrix(rows + column / 64 * Config::kGroupSlabBytes + swizzled(Swizzle::k128Bytes, at), words);
  }
  arch::fence_proxy_async();
  arch::named_barrier_sync(1 + group, 128);
  if (arch::thread_index() % 128 == 0) {
    for (int slab = 0; slab < Config::kSlabs; ++slab) {
      arch::tile_store(params.out, rows + slab * Config::kGroupSlabBytes, {row, first_token, head, 64 * slab});
    }
    arch::store_commit();
    arch::store_wait_read<0>();
  }
}

template <class Config>
AAPT_DEVICE void multiply(typename Config::SharedMemory& shared, const PagedAttentionSm90Params& params, int group,
                          int first_token, int head, int row) {
  const auto release = [](arch::Barrier* empty) {  // each warp for itself: it has read all that it will
    if (arch::lane_index() == 0) arch::barrier_arrive(empty);
  };
  PageTable table(params.common, row);
  RingPlace<Config::kStages> place;
  Accumulators<Config::kHeadDim> out = {};
  OnlineSoftmax<1> softmax;
  arch::barrier_wait(&shared.full_q, 0);

  for (TilePages pages(table); pages.any(); pages = TilePages(table), place.advance()) {
    const int stage = place.stage;
    const bool partial = pages.page[0].valid < kPageSlots || pages.page[1].valid < kPageSlots;
    Accumulators<Config::kKeys> scores;
    arch::barrier_wait(&shared.full_k[stage], place.parity);
    multiply_keys<Config>(scores, shared.q[group], shared.k[stage]);
    release(&shared.empty_k[stage]);

    if (partial || params.common.page_bias) mask_and_bias<Config>(scores, pages, params.common.scale_log2);
    softmax.absorb(scores, out, params.common.scale_log2, 0.0f);

    arch::barrier_wait(&shared.full_v[stage], place.parity);
    if (partial) clear_values<Config>(shared.v[stage], pages, group);
    multiply_values<Config>(out, scores, shared.v[stage]);
    release(&shared.empty_v[stage]);
  }

  softmax.finish(out, table.broken());
  store<Config>(out, shared.q[group], params, group, first_token, head, row);
  const int first_row = first_token + arch::thread_index() % 128 / 32 * 16 + arch::lane_index() / 4;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int token = first_row + 8 * i;
    if (arch::lane_index() % 4 == 0 && token < params.common.tokens) {
      params.common.lse[(std::int64_t{row} * params.common.heads + head) * params.common.tokens + token] =
          softmax.lse(i, table.broken());
    }
  }
}

}  // namespace aapt::paged_attention_sm90_parts

namespace aapt {

template <class Config>
AAPT_KERNEL void AAPT_LAUNCH_BOUNDS(Config::kThreads, 1)
    paged_attention_sm90(AAPT_GRID_CONSTANT const PagedAttentionSm90Params params) {
  auto& shared = *reinterpret_cast<typename Config::SharedMemory*>(arch::shared_memory());
  const int first_token = arch::block_index().x * Config::kRows;
  const int head = arch::block_index().y, row = arch::block_index().z;
  if (arch::thread_index() == 0) {
    arch::barrier_init(&shared.full_q, 1);
    for (int stage = 0; stage < Config::kStages; ++stage) {
      arch::barrier_init(&shared.full_k[stage], 1);
      arch::barrier_init(&shared.full_v[stage], 1);
      arch::barrier_init(&shared.empty_k[stage], 8);  // warps that multiply
      arch::barrier_init(&shared.empty_v[stage], 8);
    }
    arch::barrier_init_fence();
  }
  arch::sync_threads();

  const int group = arch::warp_index() / 4 - 1;
  if (group < 0) {
    arch::registers_decrease<40>();
    if (arch::warp_index() == 0 && arch::elect_one()) {
      paged_attention_sm90_parts::load<Config>(shared, params, first_token, head, row);
    }
  } else {
    arch::registers_increase<232>();
    paged_attention_sm90_parts::multiply<Config>(shared, params, group, first_token + 64 * group, head, row);
  }
}

template <class Element, int kHeadDim>
void launch_paged_attention_sm90(const PagedAttentionSm90Params& params, const Stream& stream) {
  using Config = PagedAttentionSm90Config<Element, kHeadDim>;
  Launch how;
  how.grid.x = (params.common.tokens + Config::kRows - 1) / Config::kRows;
  how.grid.y = params.common.heads;
  how.grid.z = params.common.batch;
  how.threads = Config::kThreads;
  how.shared_bytes = sizeof(typename Config::SharedMemory);
  how.stream = stream;
  arch::launch(&paged_attention_sm90<Config>, how, params);
}

}  // namespace aapt
