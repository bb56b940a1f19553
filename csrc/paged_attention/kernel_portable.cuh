// SPDX-License-Identifier: Apache-2.0
// Attention over pages with cp.async and mma.sync, for every GPU from Ampere on.
//
// A block owns 128 query rows of one head and goes through the page table of its batch row. While it works on the keys
// of a page, the values of that page and the keys of the next one are on their way. Softmax is online: per row a
// running maximum and sum, in powers of two.
#pragma once

#include <cmath>

#include "common/arch.h"
#include "paged_attention/config.h"
#include "paged_attention/page_table.cuh"
#include "paged_attention/params.h"
#include "paged_attention/softmax.cuh"

namespace aapt {

// Starts the copy of rows [0, valid) into a [kRows, kPadded] tile, and of zeros into the other rows and the columns that
// a head does not have.
template <int kRows, class Config, class Layout>
AAPT_DEVICE void load_tile(typename Config::Element* tile, Layout layout, const typename Config::Element* rows,
                           std::int64_t row_stride, int valid) {
  constexpr int kPieces = Config::kPadded / 8;  // of 16 bytes per row
  constexpr int kRowsAtOnce = Config::kThreads / kPieces;
  static_assert(kRows % kRowsAtOnce == 0);
  const int column = arch::thread_index() % kPieces * 8;
#pragma unroll
  for (int first = 0; first < kRows; first += kRowsAtOnce) {
    const int row = first + arch::thread_index() / kPieces;
    const bool inside = row < valid && column < Config::kHeadDim;
    arch::cp_async_16(tile + layout(row, column), rows + (inside ? row * row_stride + column : 0), inside ? 16 : 0);
  }
}

// The weights of one softmax step, first raw scores: accumulators of [16 rows, 8 keys] each.
template <class Config>
using Scores = float[Config::kRowTiles][Config::kKeysAtOnce / 8][4];

template <class Config>
using Output = float[Config::kRowTiles][Config::kPadded / 8][4];

// scores += Q K^T for the warp's rows and the keys from `first_key` on.
template <class Config>
AAPT_DEVICE void multiply_keys(Scores<Config>& scores, const typename Config::SharedMemory& shared,
                               const typename Config::Element* keys, int first_key) {
  const int lane = arch::lane_index();
  const int first_row = arch::warp_index() * Config::kRowsPerWarp;
  const typename Config::QueryLayout query_layout;
  const typename Config::KeyLayout key_layout;
#pragma unroll
  for (int d = 0; d < Config::kPadded; d += 16) {
    std::uint32_t q[Config::kRowTiles][4];
#pragma unroll
    for (int tile = 0; tile < Config::kRowTiles; ++tile) {
      arch::ldmatrix(q[tile], shared.q + query_layout(first_row + 16 * tile + lane % 16, d + lane / 16 * 8));
    }
#pragma unroll
    for (int key = 0; key < Config::kKeysAtOnce; key += 16) {
      std::uint32_t k[4];
      arch::ldmatrix(k, keys + key_layout(first_key + key + lane % 8 + lane / 16 * 8, d + lane / 8 % 2 * 8));
#pragma unroll
      for (int tile = 0; tile < Config::kRowTiles; ++tile) {
        arch::mma_16x8x16<typename Config::Element>(scores[tile][key / 8], q[tile], k[0], k[1]);
        arch::mma_16x8x16<typename Config::Element>(scores[tile][key / 8 + 1], q[tile], k[2], k[3]);
      }
    }
  }
}

// out += P V, with P the weights of the keys from `first_key` on, rounded to the element type.
template <class Config>
AAPT_DEVICE void multiply_values(Output<Config>& out, const Scores<Config>& weights,
                                 const typename Config::SharedMemory& shared, int first_key) {
  using Element = typename Config::Element;
  const int lane = arch::lane_index();
  const typename Config::KeyLayout value_layout;
#pragma unroll
  for (int key = 0; key < Config::kKeysAtOnce; key += 16) {
    // The accumulators of two 8-key tiles are, pair by pair, the A operand of the product over their 16 keys.
    std::uint32_t p[Config::kRowTiles][4];
#pragma unroll
    for (int tile = 0; tile < Config::kRowTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float(&pair)[4] = weights[tile][key / 8 + i / 2];
        p[tile][i] = arch::pack<Element>(pair[i % 2 * 2], pair[i % 2 * 2 + 1]);
      }
    }
#pragma unroll
    for (int d = 0; d < Config::kPadded; d += 16) {
      std::uint32_t v[4];
      arch::ldmatrix_transposed(v, shared.v + value_layout(first_key + key + lane % 16, d + lane / 16 * 8));
#pragma unroll
      for (int tile = 0; tile < Config::kRowTiles; ++tile) {
        arch::mma_16x8x16<Element>(out[tile][d / 8], p[tile], v[0], v[1]);
        arch::mma_16x8x16<Element>(out[tile][d / 8 + 1], p[tile], v[2], v[3]);
      }
    }
  }
}

// Writes the warp's rows: to shared memory in the element type, from there in pieces of 16 bytes, without the padding.
template <class Config>
AAPT_DEVICE void store_rows(const Output<Config>& out, typename Config::SharedMemory& shared,
                            const PagedAttentionParams& params, int first_token, int head, int row) {
  using Element = typename Config::Element;
  const int lane = arch::lane_index();
  const int first_row = arch::warp_index() * Config::kRowsPerWarp;
  const typename Config::QueryLayout layout;
#pragma unroll
  for (int tile = 0; tile < Config::kRowTiles; ++tile) {
#pragma unroll
    for (int n = 0; n < Config::kPadded / 8; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        Element* pair = shared.q + layout(first_row + 16 * tile + 8 * half + lane / 4, 8 * n + lane % 4 * 2);
        *reinterpret_cast<std::uint32_t*>(pair) =
            arch::pack<Element>(out[tile][n][2 * half], out[tile][n][2 * half + 1]);
      }
    }
  }
  arch::sync_warp();
  constexpr int kPieces = Config::kHeadDim / 8;
  Element* rows = static_cast<Element*>(params.out) +
                  ((std::int64_t{row} * params.tokens + first_token) * params.heads + head) * Config::kHeadDim;
#pragma unroll
  for (int i = lane; i < Config::kRowsPerWarp * kPieces; i += 32) {
    const int r = first_row + i / kPieces, column = i % kPieces * 8;
    if (first_token + r < params.tokens) {
      *reinterpret_cast<Vector16*>(rows + std::int64_t{r} * params.heads * Config::kHeadDim + column) =
          *reinterpret_cast<const Vector16*>(shared.q + layout(r, column));
    }
  }
}

template <class Config>
AAPT_KERNEL void AAPT_LAUNCH_BOUNDS(Config::kThreads, 1)
    paged_attention_portable(AAPT_GRID_CONSTANT const PagedAttentionParams params) {
  using Element = typename Config::Element;
  auto& shared = *reinterpret_cast<typename Config::SharedMemory*>(arch::shared_memory());
  const int first_token = arch::block_index().x * Config::kRows;
  const int head = arch::block_index().y, row = arch::block_index().z;
  const int kv_head = head * params.kv_heads / params.heads;

  const auto* q = static_cast<const Element*>(params.q) + row * params.q_stride.outer +
                  first_token * params.q_stride.token + head * params.q_stride.head;
  const auto* k = static_cast<const Element*>(params.k_pages) + kv_head * params.k_stride.head;
  const auto* v = static_cast<const Element*>(params.v_pages) + kv_head * params.v_stride.head;
  const auto load_keys = [&](const Page& page, int stage) {
    load_tile<Config::kKeys, Config>(shared.k[stage], typename Config::KeyLayout{}, k + page.id * params.k_stride.outer,
                                     params.k_stride.token, page.valid);
  };

  PageTable table(params, row);
  Page page = table.next();
  Output<Config> out = {};
  OnlineSoftmax<Config::kRowTiles> softmax;

  load_tile<Config::kRows, Config>(shared.q, typename Config::QueryLayout{}, q, params.q_stride.token,
                                   params.tokens - first_token);
  if (page.valid) load_keys(page, 0);
  arch::cp_async_commit();

  for (int stage = 0; page.valid; stage ^= 1) {
    // The keys of this page are there, and no warp reads the previous page any more.
    arch::cp_async_wait<0>();
    arch::sync_threads();
    load_tile<Config::kKeys, Config>(shared.v, typename Config::KeyLayout{}, v + page.id * params.v_stride.outer,
                                     params.v_stride.token, page.valid);
    arch::cp_async_commit();
    const Page next = table.next();
    if (next.valid) load_keys(next, stage ^ 1);
    arch::cp_async_commit();

#pragma unroll 1
    for (int first_key = 0; first_key < Config::kKeys; first_key += Config::kKeysAtOnce) {
      Scores<Config> scores = {};
      multiply_keys<Config>(scores, shared, shared.k[stage], first_key);
      if (page.valid < Config::kKeys) mask_keys(scores, page.valid - first_key);
      softmax.absorb(scores, out, params.scale_log2, page.bias_log2);
      if (first_key == 0) {  // the values are there; the next keys may still be on their way
        arch::cp_async_wait<1>();
        arch::sync_threads();
      }
      multiply_values<Config>(out, scores, shared, first_key);
    }
    page = next;
  }
  arch::cp_async_wait<0>();  // the queries, when no page was listed
  arch::sync_warp();         // the warp's rows of Q, which no other warp reads, make room for the result

  softmax.finish(out, table.broken());
  store_rows<Config>(out, shared, params, first_token, head, row);
#pragma unroll
  for (int i = 0; i < 2 * Config::kRowTiles; ++i) {
    const int r = first_token + arch::warp_index() * Config::kRowsPerWarp + 8 * i + arch::lane_index() / 4;
    if (arch::lane_index() % 4 == 0 && r < params.tokens) {
      params.lse[(std::int64_t{row} * params.heads + head) * params.tokens + r] = softmax.lse(i, table.broken());
    }
  }
}

template <class Element, int kHeadDim>
void launch_paged_attention_portable(const PagedAttentionParams& params, const Stream& stream) {
  using Config = PagedAttentionPortableConfig<Element, kHeadDim>;
  Launch how;
  how.grid.x = (params.tokens + Config::kRows - 1) / Config::kRows;
  how.grid.y = params.heads;
  how.grid.z = params.batch;
  how.threads = Config::kThreads;
  how.shared_bytes = sizeof(typename Config::SharedMemory);
  how.stream = stream;
  arch::launch(&paged_attention_portable<Config>, how, params);
}

}  // namespace aapt
