// SPDX-License-Identifier: Apache-2.0
// Patch embedding with cp.async and mma.sync, for every GPU from Ampere on: tokens = patches weight^T + bias.
//
// A block makes 64 tokens times 128 features of one frame. While it multiplies one slab of 64 columns, the weight of
// the next slab is on its way to shared memory and the pixels of the next slab to registers.
#pragma once

#include "channel_concat/config.h"
#include "channel_concat/gather.cuh"
#include "channel_concat/params.h"
#include "common/arch.h"

namespace aapt {

// Starts the copy of a slab of the weight; zeros where there are no more features or columns.
template <class Config>
AAPT_DEVICE void load_weight(typename Config::Element* slab_memory, const ChannelConcatParams& params,
                             int first_feature, int slab) {
  constexpr int kRowsAtOnce = Config::kThreads / Config::kPieces;
  static_assert(Config::kFeatures % kRowsAtOnce == 0);
  const typename Config::WeightLayout layout;
  const auto* weight = static_cast<const typename Config::Element*>(params.weight);
  const int in_slab = arch::thread_index() % Config::kPieces * 8, column = slab * Config::kSlab + in_slab;
#pragma unroll
  for (int first = 0; first < Config::kFeatures; first += kRowsAtOnce) {
    const int row = first + arch::thread_index() / Config::kPieces, feature = first_feature + row;
    const bool inside = feature < params.features && column < params.columns;
    arch::cp_async_16(slab_memory + layout(row, in_slab),
                      weight + (inside ? feature * params.weight_stride + column : 0), inside ? 16 : 0);
  }
}

// The tokens of a warp: accumulators of [16 tokens, 8 features] each.
template <class Config>
using Accumulators = float[Config::kTokensPerWarp / 16][Config::kFeaturesPerWarp / 8][4];

// accumulators += patches weight^T over one slab.
template <class Config>
AAPT_DEVICE void multiply_slab(Accumulators<Config>& accumulators, const typename Config::SharedMemory& shared,
                               int stage) {
  using Element = typename Config::Element;
  constexpr int kTokenTiles = Config::kTokensPerWarp / 16;
  const int lane = arch::lane_index();
  const int first_token = arch::warp_index() % Config::kTokenWarps * Config::kTokensPerWarp;
  const int first_feature = arch::warp_index() / Config::kTokenWarps * Config::kFeaturesPerWarp;
  const typename Config::PatchLayout patch_layout;
  const typename Config::WeightLayout weight_layout;
#pragma unroll
  for (int column = 0; column < Config::kSlab; column += 16) {
    // Tokens are rows of A, features are columns of B: both lie in shared memory with the summed dimension dense.
    std::uint32_t patches[kTokenTiles][4];
#pragma unroll
    for (int tile = 0; tile < kTokenTiles; ++tile) {
      arch::ldmatrix(patches[tile], shared.patches[stage] + patch_layout(first_token + 16 * tile + lane % 16,
                                                                         column + lane / 16 * 8));
    }
#pragma unroll
    for (int feature = 0; feature < Config::kFeaturesPerWarp; feature += 16) {
      std::uint32_t weight[4];
      arch::ldmatrix(weight, shared.weight[stage] + weight_layout(first_feature + feature + lane % 8 + lane / 16 * 8,
                                                                  column + lane / 8 % 2 * 8));
#pragma unroll
      for (int tile = 0; tile < kTokenTiles; ++tile) {
        arch::mma_16x8x16<Element>(accumulators[tile][feature / 8], patches[tile], weight[0], weight[1]);
        arch::mma_16x8x16<Element>(accumulators[tile][feature / 8 + 1], patches[tile], weight[2], weight[3]);
      }
    }
  }
}

// Adds the bias and rounds, to shared memory; from there each warp writes its tokens. Rows start at multiples of 16
// bytes when the number of features is a multiple of 8, as it is in every model, and are then written in pieces of 16
// bytes; other numbers of features are written element by element.
template <class Config>
AAPT_DEVICE void store_tokens(const Accumulators<Config>& accumulators, typename Config::SharedMemory& shared,
                              const ChannelConcatParams& params, int frame, int first_token, int first_feature) {
  using Element = typename Config::Element;
  const int lane = arch::lane_index();
  const int first_row = arch::warp_index() % Config::kTokenWarps * Config::kTokensPerWarp;
  const int warp_feature = arch::warp_index() / Config::kTokenWarps * Config::kFeaturesPerWarp;
  const int first_column = warp_feature % Config::kSlab;
  const typename Config::PatchLayout layout;
  Element* result = shared.weight[0] + warp_feature / Config::kSlab * Config::kTokens * Config::kSlab;
  const auto* bias = static_cast<const Element*>(params.bias);
#pragma unroll
  for (int n = 0; n < Config::kFeaturesPerWarp / 8; ++n) {
    // This lane's two features, in eight of the warp's tokens.
    const int in_warp = 8 * n + lane % 4 * 2;
    float offset[2] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int feature = first_feature + warp_feature + in_warp + i;
      if (bias && feature < params.features) offset[i] = arch::to_float(bias[feature * params.bias_stride]);
    }
#pragma unroll
    for (int row = 0; row < Config::kTokensPerWarp / 8; ++row) {
      const float* pair = accumulators[row / 2][n] + row % 2 * 2;
      *reinterpret_cast<std::uint32_t*>(result + layout(first_row + 8 * row + lane / 4, first_column + in_warp)) =
          arch::pack<Element>(pair[0] + offset[0], pair[1] + offset[1]);
    }
  }
  arch::sync_warp();  // the pieces of a warp are its own

  auto* tokens = static_cast<Element*>(params.tokens) + std::int64_t{frame} * params.token_count * params.features;
  constexpr int kPieces = Config::kFeaturesPerWarp / 8;
#pragma unroll 1
  for (int i = lane; i < Config::kTokensPerWarp * kPieces; i += 32) {
    const int row = first_row + i / kPieces, in_warp = i % kPieces * 8;
    const int token = first_token + row, feature = first_feature + warp_feature + in_warp;
    if (token >= params.token_count || feature >= params.features) continue;
    const Element* piece = result + layout(row, first_column + in_warp);
    Element* to = tokens + std::int64_t{token} * params.features + feature;
    if (params.vector_stores) {
      *reinterpret_cast<Vector16*>(to) = *reinterpret_cast<const Vector16*>(piece);
    } else {
      for (int e = 0; e < 8 && feature + e < params.features; ++e) to[e] = piece[e];
    }
  }
}

template <class Config>
AAPT_KERNEL void AAPT_LAUNCH_BOUNDS(Config::kThreads, 2)
    channel_concat_portable(AAPT_GRID_CONSTANT const ChannelConcatParams params) {
  auto& shared = *reinterpret_cast<typename Config::SharedMemory*>(arch::shared_memory());
  const int first_token = arch::block_index().x * Config::kTokens;
  const int first_feature = arch::block_index().y * Config::kFeatures;
  const int frame = arch::block_index().z;
  PatchGatherer<Config> gatherer(params, frame, first_token);
  const int slabs = (params.columns + Config::kSlab - 1) / Config::kSlab;

  // Only the first slab has to be waited for with nothing else to do.
  load_weight<Config>(shared.weight[0], params, first_feature, 0);
  arch::cp_async_commit();
  gatherer.load(0);
  gatherer.store(shared.patches[0]);

  Accumulators<Config> accumulators = {};
#pragma unroll 1
  for (int slab = 0; slab < slabs; ++slab) {
    const int stage = slab % 2;
    const bool more = slab + 1 < slabs;
    // This slab is there, and no warp reads the previous one any more.
    arch::cp_async_wait<0>();
    arch::sync_threads();
    if (more) {
      load_weight<Config>(shared.weight[stage ^ 1], params, first_feature, slab + 1);
      arch::cp_async_commit();
      gatherer.load(slab + 1);
    }
    multiply_slab<Config>(accumulators, shared, stage);
    if (more) gatherer.store(shared.patches[stage ^ 1]);
  }
  arch::cp_async_wait<0>();  // the zeros of slab 0, when there are no columns
  arch::sync_threads();      // the weight makes room for the result
  store_tokens<Config>(accumulators, shared, params, frame, first_token, first_feature);
}

template <class Element, int kPatch>
void launch_channel_concat_portable(const ChannelConcatParams& params, const Stream& stream) {
  using Config = ChannelConcatPortableConfig<Element, kPatch>;
  Launch how;
  how.grid.x = (params.token_count + Config::kTokens - 1) / Config::kTokens;
  how.grid.y = (params.features + Config::kFeatures - 1) / Config::kFeatures;
  how.grid.z = params.frames;
  how.threads = Config::kThreads;
  how.shared_bytes = sizeof(typename Config::SharedMemory);
  how.stream = stream;
  arch::launch(&channel_concat_portable<Config>, how, params);
}

}  // namespace aapt
