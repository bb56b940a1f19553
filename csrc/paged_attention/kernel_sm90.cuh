// SPDX-License-Identifier: Apache-2.0
// Attention over pages with the copy engine and wgmma, for Hopper: paged_attention/sm90, and paged_attention/sm90_split
// with clusters and split keys.
//
// A block owns 128 query rows of one head: 64 for each of two warpgroups that multiply. A third one loads, with one
// warp, tiles of two pages into a ring of shared memory and runs ahead of them. While one multiplying warpgroup is busy
// with its softmax, the other one has the tensor cores.
#pragma once

#include "common/arch.h"
#include "paged_attention/combine_sm90.cuh"
#include "paged_attention/config_sm90.h"
#include "paged_attention/load_sm90.cuh"
#include "paged_attention/multiply_sm90.cuh"
#include "paged_attention/params.h"

namespace aapt::paged_attention_sm90_parts {

template <class Config>
AAPT_DEVICE void sync_blocks() {
  if constexpr (Config::kCluster == 1) {
    arch::sync_threads();
  } else {
    arch::cluster_sync_after_init();
  }
}

// A block of the kernel; `Loop` is the multiplying warpgroups' loop over the tiles.
template <class Config, class Loop>
AAPT_DEVICE void attend(const PagedAttentionSm90Params& params) {
  auto& shared = *reinterpret_cast<typename Config::SharedMemory*>(arch::shared_memory());
  const auto block = Place::of_this_block<Config>(params);
  // Prepare the barriers, and wait until every block that arrives at them can see them.
  if (arch::thread_index() == 0) {
    arch::barrier_init(&shared.full_q, 1);
    for (int stage = 0; stage < Config::kStages; ++stage) {
      arch::barrier_init(&shared.full_k[stage], 1);
      arch::barrier_init(&shared.full_v[stage], 1);
      arch::barrier_init(&shared.empty_k[stage], 8 * Config::kCluster);  // warps that multiply
      arch::barrier_init(&shared.empty_v[stage], 8 * Config::kCluster);
      arch::barrier_init(&shared.cleared_v[stage], 1);
    }
    arch::barrier_init_fence();
  }
  sync_blocks<Config>();

  // Divide the work: warpgroup 0 loads, with one warp and few registers; 1 and 2 multiply.
  const int group = arch::warp_index() / 4 - 1;
  if (group < 0) {
    arch::registers_decrease<56>();
    if (arch::warp_index() == 0) load<Config>(shared, params, block);
  } else {
    arch::registers_increase<224>();
    multiply<Config, Loop>(shared, params, group, block);
  }
}

}  // namespace aapt::paged_attention_sm90_parts

namespace aapt {

template <class Config>
AAPT_KERNEL void AAPT_LAUNCH_BOUNDS(Config::kThreads, 1)
    paged_attention_sm90(AAPT_GRID_CONSTANT const PagedAttentionSm90Params params) {
  paged_attention_sm90_parts::attend<Config, paged_attention_sm90_parts::Overlapped>(params);
}

template <class Config>
AAPT_KERNEL void AAPT_LAUNCH_BOUNDS(Config::kThreads, 1)
    paged_attention_sm90_split(AAPT_GRID_CONSTANT const PagedAttentionSm90Params params) {
  paged_attention_sm90_parts::attend<Config, paged_attention_sm90_parts::Overlapped>(params);
}

// A block for 128 rows of every head of every row of the batch.
template <class Config>
Launch launch_of(const PagedAttentionSm90Params& params, const Stream& stream) {
  constexpr int kClusterRows = Config::kRows * Config::kCluster;
  Launch how;
  how.cluster = Config::kCluster;
  how.grid.x = (params.common.tokens + kClusterRows - 1) / kClusterRows * Config::kCluster;
  how.grid.y = params.common.heads;
  how.grid.z = params.common.batch;
  how.threads = Config::kThreads;
  how.shared_bytes = sizeof(typename Config::SharedMemory);
  how.stream = stream;
  return how;
}

template <class Element, int kHeadDim>
void launch_paged_attention_sm90(const PagedAttentionSm90Params& params, const Stream& stream) {
  using Config = PagedAttentionSm90Config<Element, kHeadDim, /*kSplitsKeys=*/false>;
  arch::launch(&paged_attention_sm90<Config>, launch_of<Config>(params, stream), params);
}

template <class Element, int kHeadDim>
void launch_paged_attention_sm90_split(const PagedAttentionSm90Params& params, const Stream& stream) {
  using Config = PagedAttentionSm90Config<Element, kHeadDim, /*kSplitsKeys=*/true>;
  const int heads = params.common.batch * params.common.heads, split = heads - params.split.whole;
  Launch how = launch_of<Config>(params, stream);
  how.grid.y = params.split.whole + split * params.split.parts;
  how.grid.z = 1;
  arch::launch(&paged_attention_sm90_split<Config>, how, params);
  if (split == 0) return;  // no head has parts to add up

  constexpr int kRows = paged_attention_sm90_parts::kCombineRows<kHeadDim>;
  Launch combine;
  combine.grid.x = (params.common.tokens + kRows - 1) / kRows;
  combine.grid.y = split;
  combine.threads = paged_attention_sm90_parts::kCombineThreads;
  combine.early = true;
  combine.stream = stream;
  arch::launch(&paged_attention_sm90_parts::paged_attention_sm90_split::combine<Element, kHeadDim>, combine, params);
}

}  // namespace aapt
