// SPDX-License-Identifier: Apache-2.0
// A warpgroup that multiplies: 64 query rows, scores, weights and output in registers.
#pragma once

#include <cmath>

#include "common/arch.h"
#include "paged_attention/config_sm90.h"
#include "paged_attention/load_sm90.cuh"
#include "paged_attention/params.h"
#include "paged_attention/softmax.cuh"

namespace aapt::paged_attention_sm90_parts {

// A thread's share of 64 rows: accumulators of [8 rows, 8 columns] pairs, as softmax.cuh sees them.
template <int kColumns>
using Accumulators = float[1][kColumns / 8][4];

template <int kColumns>
AAPT_DEVICE float (&flat(Accumulators<kColumns>& accumulators))[kColumns / 2] {
  return reinterpret_cast<float(&)[kColumns / 2]>(accumulators);
}

// Starts scores = Q K^T over the tile.
template <class Config>
AAPT_DEVICE void multiply_keys(Accumulators<Config::kKeys>& scores, const char* q, const char* k) {
  // Describe both operands: rows of 128 bytes, K-major, 1024 bytes from eight rows to the next.
  const auto rows = make_matrix_descriptor(arch::shared_address(q), Swizzle::k128Bytes, 0, 1024);
  const auto keys = make_matrix_descriptor(arch::shared_address(k), Swizzle::k128Bytes, 0, 1024);
  auto& d = flat<Config::kKeys>(scores);
  arch::wgmma_fence(d);
  // Add up products of 16 columns; the first one overwrites the scores.
#pragma unroll
  for (int step = 0; step < Config::kHeadDim / 16; ++step) {
    const int slab = step / 4, in_slab = step % 4 * 32;
    arch::wgmma<typename Config::Element>(d, rows.moved(slab * Config::kGroupSlabBytes + in_slab),
                                          keys.moved(slab * Config::kTileSlabBytes + in_slab), step > 0);
  }
  arch::wgmma_commit();
}

// The left operand of the second product. Two tiles of 8 keys are, pair by pair, what it takes of their 16 keys.
template <class Config>
struct Weights {
  std::uint32_t words[Config::kKeys / 16][4];

  AAPT_DEVICE void pack(const Accumulators<Config::kKeys>& weights) {
#pragma unroll
    for (int step = 0; step < Config::kKeys / 16; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float(&pair)[4] = weights[0][2 * step + i / 2];
        words[step][i] = arch::pack<typename Config::Element>(pair[i % 2 * 2], pair[i % 2 * 2 + 1]);
      }
    }
  }
};

// Starts out += P V over the tile. `weights` stays as it is until the product is done.
template <class Config>
AAPT_DEVICE void multiply_values(Accumulators<Config::kHeadDim>& out, const Weights<Config>& weights, const char* v) {
  // Describe the values: MN-major, a slab from 64 columns to the next.
  const auto values =
      make_matrix_descriptor(arch::shared_address(v), Swizzle::k128Bytes, Config::kTileSlabBytes, 1024);
  auto& d = flat<Config::kHeadDim>(out);
  arch::wgmma_fence(d);
  // Add up products of 16 keys.
#pragma unroll
  for (int step = 0; step < Config::kKeys / 16; ++step) {
    arch::wgmma<typename Config::Element, Major::kMN>(d, weights.words[step], values.moved(step * 16 * 128), true);
  }
  arch::wgmma_commit();
}

// Adds the bias of each page to its scores; those of slots that do not count become minus infinity.
template <class Config>
AAPT_DEVICE void mask_and_bias(Accumulators<Config::kKeys>& scores, const TileFacts& facts,
                               const PagedAttentionParams& params) {
#pragma unroll
  for (int page = 0; page < 2; ++page) {
    const int valid = facts.valid[page];
    if (valid == kPageSlots && !params.page_bias) continue;
#pragma unroll
    for (int n = 0; n < kPageSlots / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& score = scores[0][page * (kPageSlots / 8) + n][i];
        const int slot = n * 8 + arch::lane_index() % 4 * 2 + i % 2;
        score = slot < valid ? score + facts.bias[page] : -INFINITY;
      }
    }
  }
}

// Tells the loading warp that this one has read all that it will of a stage: in every block whose copies come here.
template <class Config>
AAPT_DEVICE void release(arch::Barrier* empty) {
  if constexpr (Config::kCluster == 1) {
    if (arch::lane_index() == 0) arch::barrier_arrive(empty);
  } else {
    if (arch::lane_index() < Config::kCluster) arch::barrier_release_remote(empty, arch::lane_index());
  }
}

// The two warpgroups hand each other the right to start products, so that one has its softmax while the tensor cores
// work for the other one. Barrier 3 + group: it may. Group 0 begins; what group 1 gives it at the end it takes, too.
class Turns {
 public:
  AAPT_DEVICE explicit Turns(int group) : group_(group) {
    if (group_ == 1) pass();
  }
  AAPT_DEVICE void take() const { arch::named_barrier_sync(3 + group_, 2 * 128); }
  AAPT_DEVICE void pass() const { arch::named_barrier_arrive(3 + (group_ ^ 1), 2 * 128); }
  AAPT_DEVICE void end() const {
    if (group_ == 0) take();
  }

 private:
  int group_;
};

// The loop over the tiles: the scores of the next tile are on their way during this one's softmax and values.
//
//   tensor cores    Q K(j+1)   P(j) V(j)            the other warpgroup's
//   this warpgroup             softmax of j + 1     packs P(j+1)
struct Overlapped {
  template <class Config>
  AAPT_DEVICE static void run(typename Config::SharedMemory& shared, const PagedAttentionParams& params, int group,
                              Accumulators<Config::kHeadDim>& out, OnlineSoftmax<1>& softmax) {
    const Turns turns(group);
    RingPlace<Config::kStages> place, ahead;  // of the values, and of the keys of the tile after it
    const auto await_keys = [&] {
      arch::barrier_wait(&shared.full_k[ahead.stage], ahead.parity);
      return shared.facts[ahead.stage];
    };
    const auto await_values = [&](const TileFacts& facts) {
      arch::barrier_wait(&shared.full_v[place.stage], place.parity);
      if (facts.partial()) arch::barrier_wait(&shared.cleared_v[place.stage], place.parity);
    };
    Accumulators<Config::kKeys> scores;
    Weights<Config> weights;
    float corrections[2];

    // Wait for the first keys, if there are any.
    TileFacts facts = await_keys();
    if (facts.any()) {
      // Multiply them in this group's turn, and wait for the scores.
      turns.take();
      multiply_keys<Config>(scores, shared.q[group], shared.k[0]);
      turns.pass();
      arch::wgmma_wait<0>(flat<Config::kKeys>(scores));
      release<Config>(&shared.empty_k[0]);
      // Turn the scores into weights.
      mask_and_bias<Config>(scores, facts, params);
      softmax.weigh(scores, corrections, params.scale_log2);
      weights.pack(scores);
      // Wait for the keys of the second tile, or for the end.
      ahead.advance();
      TileFacts next = await_keys();

      for (;;) {
        // Wait for the values of this tile.
        await_values(facts);
        if (!next.any()) break;

        // Start both products in this group's turn: scores of the next tile, values of this one.
        turns.take();
        multiply_keys<Config>(scores, shared.q[group], shared.k[ahead.stage]);
        multiply_values<Config>(out, weights, shared.v[place.stage]);
        turns.pass();

        // Wait for the scores only, and compute their weights while the values are multiplied.
        arch::wgmma_wait<1>(flat<Config::kKeys>(scores));
        release<Config>(&shared.empty_k[ahead.stage]);
        mask_and_bias<Config>(scores, next, params);
        softmax.weigh(scores, corrections, params.scale_log2);

        // Wait for the keys of the tile after that. The wait stands here because it is a loop: without one, ptxas puts
        // the next wait before the softmax.
        ahead.advance();
        facts = next;
        next = await_keys();
        // Wait for the values, then bring the output to the new maximum.
        arch::wgmma_wait<0>(flat<Config::kHeadDim>(out), flat<Config::kKeys>(scores));
        release<Config>(&shared.empty_v[place.stage]);
        softmax.rescale(out, corrections);
        weights.pack(scores);
        place.advance();
      }
      // Multiply the values of the last tile.
      multiply_values<Config>(out, weights, shared.v[place.stage]);
      arch::wgmma_wait<0>(flat<Config::kHeadDim>(out));
      release<Config>(&shared.empty_v[place.stage]);
    }
    turns.end();
  }
};

// Writes the warpgroup's rows: to the place of its queries, from there with the copy engine, which leaves out tokens
// beyond the last one. `outer` and `head` are their place in the tensor of the map.
template <class Config>
AAPT_DEVICE void store(const Accumulators<Config::kHeadDim>& out, char* rows, const TensorMap& map, int group, int outer,
                       int first_token, int head) {
  const int lane = arch::lane_index(), warp = arch::thread_index() % 128 / 32;
  // Wait until no warp of the group has a product that reads the queries.
  arch::named_barrier_sync(1 + group, 128);
  // Write four matrices of 8 x 8 at a time: two of rows times two of columns.
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
  // Show the rows to the copy engine, wait for those of the whole warpgroup, then let one thread start the copies.
  arch::fence_proxy_async();
  arch::named_barrier_sync(1 + group, 128);
  if (arch::thread_index() % 128 == 0) {
    for (int slab = 0; slab < Config::kSlabs; ++slab) {
      arch::tile_store(map, rows + slab * Config::kGroupSlabBytes, {outer, first_token, head, 64 * slab});
    }
    arch::store_commit();
    arch::store_wait_read<0>();  // shared memory ends with the block
  }
}

template <class Config, class Loop>
AAPT_DEVICE void multiply(typename Config::SharedMemory& shared, const PagedAttentionSm90Params& params, int group,
                          const Place& block) {
  Accumulators<Config::kHeadDim> out = {};
  OnlineSoftmax<1> softmax;
  // Wait for the queries and go through the tiles.
  arch::barrier_wait(&shared.full_q, 0);
  Loop::template run<Config>(shared, params.common, group, out, softmax);

  // Divide by the sums, and write the rows: whole ones to the result, those of a part to its place among the parts.
  const bool broken = shared.broken, part = Config::kSplit && block.part >= 0;
  const int first_token = block.first_token + 64 * group;
  softmax.finish(out, broken);
  store<Config>(out, shared.q[group], part ? params.parts : params.out, group, part ? block.part : block.row,
                first_token, part ? 0 : block.head);
  // Write the log-sum-exp of two rows by one of the four lanes that share them.
  float* lse = part ? params.split.lse : params.common.lse;
  const std::int64_t first_row =
      std::int64_t{part ? block.part : block.row * params.common.heads + block.head} * params.common.tokens;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int token = first_token + arch::thread_index() % 128 / 32 * 16 + arch::lane_index() / 4 + 8 * i;
    if (arch::lane_index() % 4 == 0 && token < params.common.tokens) lse[first_row + token] = softmax.lse(i, broken);
  }
}

}  // namespace aapt::paged_attention_sm90_parts
