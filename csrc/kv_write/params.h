// SPDX-License-Identifier: Apache-2.0
// Parameters of the kv_write kernel. The maths is in python/aapt_fast/ops/kv_write.py.
#pragma once

#include <cstdint>

#include "common/launch.h"

namespace aapt {

// A block owns a token; each of its threads holds this many vectors of 8 elements in registers, or fewer.
constexpr int kKvWriteMaxThreads = 512;
constexpr int kKvWriteMaxVectors = 8;

struct KvWriteParams {
  const void* q;                 // [B, N, H, D], rows of D dense
  const void* k;                 // [B, N, Hkv, D], likewise
  const void* v;                 // [B, N, Hkv, D]
  const float* cos;              // [B, N, D / 2] or null, rows dense
  const float* sin;              // [B, N, D / 2] or null
  const std::int32_t* page_ids;  // [B, ceil(N / 64)]
  void* k_pages;                 // [P, 64, Hkv, D], rows of D dense
  void* v_pages;                 // [P, 64, Hkv, D]
  void* out;                     // [B, N, H, D], dense

  struct Norm {
    const void* weight;  // [D], or [heads * D] where the norm is across heads; null: no norm
    bool weight_is_float32;
    bool across_heads;
  };
  Norm q_norm, k_norm;

  // strides in elements; 64 bits, because a pool passes 2^31 elements easily
  struct Rows {
    std::int64_t outer, token, head;
  };
  Rows q_stride;  // outer: row of the batch
  Rows k_stride;
  Rows v_stride;
  Rows k_pages_stride;  // outer: page
  Rows v_pages_stride;
  std::int64_t ids_stride[2];
  std::int64_t cos_stride[2], sin_stride[2];  // row of the batch (0: all rows share them), token

  int batch, tokens, heads, kv_heads, pages;
  float eps;
};

// One instantiation per element type and head width D.
template <class Element, int kHeadDim>
void launch_kv_write_portable(const KvWriteParams& params, const Stream& stream);

}  // namespace aapt
