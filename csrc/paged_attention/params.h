// SPDX-License-Identifier: Apache-2.0
// Parameters of the attention kernels. The maths is in python/aapt_fast/ops/paged_attention.py.
#pragma once

#include <cstdint>

#include "common/launch.h"
#include "common/tensor_map.h"

namespace aapt {

struct PagedAttentionParams {
  const void* q;                  // [B, N, H, D], rows of D dense
  const void* k_pages;            // [P, 64, Hkv, D], likewise
  const void* v_pages;            // [P, 64, Hkv, D]
  const std::int32_t* page_ids;   // [B, M]
  const std::int32_t* page_valid; // [B, M]
  const float* page_bias;         // [B, M] or null
  void* out;                      // [B, N, H, D], dense
  float* lse;                     // [B, H, N], dense

  // strides in elements; 64 bits, because a pool passes 2^31 elements easily
  struct Rows {
    std::int64_t outer, token, head;
  };
  Rows q_stride;      // outer: row of the batch
  Rows k_stride;      // outer: page
  Rows v_stride;
  std::int64_t ids_stride[2], valid_stride[2], bias_stride[2];

  int batch, tokens, heads, kv_heads, entries, pages;
  float scale_log2;  // scale * log2(e): the softmax is computed in powers of two
};

// Split of the keys. The heads of all rows are counted as one list; those from `whole` on have `parts` parts. Part p has
// the entries cuts[p] to cuts[p + 1] of the page table, in shares of all entries: 0 comes first, kShares last.
struct SplitKeys {
  static constexpr int kMostParts = 8;
  static constexpr int kShares = 840;  // a multiple of 1 to 8

  int whole, parts;
  int cuts[kMostParts + 1];
  const void* out;  // [(B * H - whole) * parts, N, 1, D], dense
  float* lse;       // [(B * H - whole) * parts, N], dense
};

// The kernel for Hopper reads and writes through the copy engine.
struct PagedAttentionSm90Params {
  PagedAttentionParams common;
  TensorMap q, out;            // [B, N, H, D] in boxes of 64 tokens, one head, 64 columns
  TensorMap k_pages, v_pages;  // [P, 64, Hkv, D] in boxes of a page, one head, 64 columns
  SplitKeys split;             // of paged_attention_sm90_split
  TensorMap parts;             // split.out in boxes of 64 tokens, 64 columns
};

// One instantiation per element type and head width D.
template <class Element, int kHeadDim>
void launch_paged_attention_portable(const PagedAttentionParams& params, const Stream& stream);
template <class Element, int kHeadDim>
void launch_paged_attention_sm90(const PagedAttentionSm90Params& params, const Stream& stream);
template <class Element, int kHeadDim>
void launch_paged_attention_sm90_split(const PagedAttentionSm90Params& params, const Stream& stream);

}  // namespace aapt
